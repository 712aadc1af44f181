// Uploads a file with tus-js-client: node upload.cjs <folder of node_modules> <options as JSON>.
// Prints the URL of the upload, and on failure the reason, with exit status 1.
const { createReadStream, readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { PassThrough } = require("node:stream");

const [folder, text] = process.argv.slice(2);
const tus = createRequire(`${folder}/package.json`)("tus-js-client");
const { file, stopAt, stream, ...options } = JSON.parse(text);

// Through another stream, since the client would look a file stream's length up.
const content = stream ? createReadStream(file).pipe(new PassThrough()) : readFileSync(file);
const upload = new tus.Upload(content, {
  ...options,
  retryDelays: [0, 0, 0, 0],
  onShouldRetry: () => true,
  onChunkComplete(size, offset) {
    if (stopAt !== undefined && offset >= stopAt) {
      upload.abort();
      console.log(upload.url);
    }
  },
  onSuccess: () => console.log(upload.url),
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
});
upload.start();
