// Serves uploads with @tus/server: node serve.cjs <folder of node_modules> <data folder> <port> [absolute].
// Prints "listening on <port>" once it does.
const { createServer } = require("node:http");
const { createRequire } = require("node:module");
const { pathToFileURL } = require("node:url");

const [folder, directory, port, location] = process.argv.slice(2);
const resolve = createRequire(`${folder}/package.json`).resolve;

async function main() {
  const { Server } = await import(pathToFileURL(resolve("@tus/server")));
  const { FileStore } = await import(pathToFileURL(resolve("@tus/file-store")));
  const tus = new Server({ path: "/files", datastore: new FileStore({ directory }), relativeLocation: location !== "absolute" });
  const server = createServer(tus.handle.bind(tus));
  server.listen(Number(port), "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
}

main();
