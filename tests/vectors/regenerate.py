"""Write the test vectors anew, and with them the examples in docs/protocol.md.

    .venv/bin/python tests/vectors/regenerate.py

What changes is a change of the wire: look at the difference before you keep it. ``--compress`` has zstd compress the
segments' blocks again, which gives other bytes with another zstd.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from testkit import vectors


def write(part: str, files: dict[str, bytes]) -> None:
    folder = vectors.FOLDER / part
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


async def main(*, compress: bool) -> None:
    kept = None if compress else vectors.payloads_of(vectors.kept("segments")["whole.zst"])
    segments = vectors.segments(kept)
    write("segments", {**segments, "outlines.json": vectors.outlines(segments)})
    write("negotiations", vectors.negotiations(segments["whole.zst"]))
    for name in vectors.SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            messages = await vectors.exchanged(name, segments["whole.zst"], Path(folder) / "data")
        write(f"exchanges/{name}", messages)
    vectors.DOCUMENT.write_text(vectors.filled(vectors.DOCUMENT.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    asyncio.run(main(compress="--compress" in sys.argv[1:]))
