"""One target of the fuzzer, in a process of its own.

usage: python -m breakage.targets NAME RUNS SEED

atheris is imported before this package's modules, which it instruments as they are imported.
"""

from __future__ import annotations

import atexit
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ztok_rag"]):
    from breakage.web import Web
    from breakage.world import World
    from ztok_rag.codec.compressed_text import _TEXT_VERSION, CompressedText
    from ztok_rag.codec.llm_code import MAGIC, LosslessText
    from ztok_rag.codec.sequence import _SEQUENCE_MAGIC, ZSequence
    from ztok_rag.codec.serialization import seal
    from ztok_rag.errors import ZtokError
    from ztok_rag.index.folder import Manifest
    from ztok_rag.jsonl import parse_jsonl
    from ztok_rag.selection.sentences import _unpacked
    from ztok_rag.storage import handle

SECRET = bytes(range(32))
BODIES = "HTTP bodies"
_SECONDS = 10  # of one input
_MEGABYTES = 4096
Target = Callable[[bytes], None]


def targets(name: str) -> dict[str, tuple[Target, list[bytes]]]:
    """What is fuzzed, each with seeds; that of a name among them."""
    world = World(0, documents=3)
    code, slots = world.compressor.model.token_code, world.compressor.slots
    text, own = next(iter(world.truth.items()))
    tokens = world.compressor.tokenize([text])[0]
    zs = [made.at(rate, slots) for made in world.truth.values() for rate in (1.0, 4.0, 40.0)]
    fingerprint = world.compressor.fingerprint

    def codes(data: bytes) -> None:
        z = ZSequence.from_bytes(seal(_SEQUENCE_MAGIC, fingerprint, data), code)
        assert ZSequence.from_bytes(z.to_bytes(), code).to_bytes() == z.to_bytes()

    def raw_codes(data: bytes) -> None:
        ZSequence.from_bytes(data, code)

    def signed(data: bytes) -> None:
        number, body = 1 + data[0] % 9 if data else 1, data[1:]
        whole = handle.secret_id(SECRET) + handle._mac(number, body, SECRET) + body
        handle.decode_handle(f"⟦ztok:{number}:{handle._base64(whole)}⟧", SECRET, code)

    def prompt(data: bytes) -> None:
        written = data.decode("utf-8", "replace")
        handle.count_tokens(written, lambda part: [0] * len(part))
        escaped = handle.escape_handles(written)
        assert not handle.has_handles(escaped)
        assert handle.split_prompt(escaped, SECRET, fingerprint, code) == [escaped] * bool(escaped)
        handle.split_prompt(written, SECRET, fingerprint, code)

    def entry(data: bytes) -> None:
        whole = _TEXT_VERSION + tokens._checksum(data) + data
        found = CompressedText.from_bytes(whole, tokens)
        found.at(4.0, slots)

    def sentences(data: bytes) -> None:
        _unpacked(text, data, 7)

    def lossless(data: bytes) -> None:
        found = LosslessText.from_bytes(MAGIC + data)
        assert LosslessText.from_bytes(found.to_bytes()) == found

    def records(data: bytes) -> None:
        parse_jsonl(data.decode("utf-8", "surrogateescape"), "input", {"question": str})

    folder = Path(tempfile.mkdtemp(prefix="ztok-fuzz-"))
    place = folder / "ztok.json"

    def settings(data: bytes) -> None:
        place.write_bytes(data)
        Manifest.load(place)

    manifest = Manifest(4.0, 256, 0, fingerprint, slots, "model", 16)
    bodies = [z.to_bytes()[16:] for z in zs]
    packed = own.to_bytes()[5:]
    written = "\n".join(json.dumps({"question": q, "n": 1}) for q in ("Who?", "Where\u2028?"))
    made: dict[str, tuple[Target, list[bytes]]] = {
        "files of codes": (codes, bodies),
        "files of codes, unsealed": (raw_codes, [z.to_bytes() for z in zs]),
        "signed handles": (signed, [b"\4" + z.to_bytes() for z in zs]),
        "prompts": (
            prompt,
            [f"a {handle.encode_handle(z, SECRET)} b ⟦ztok:1:".encode() for z in zs[:4]],
        ),
        "store entries": (entry, [packed]),
        "sentence entries": (sentences, [bytes(21)]),
        "lossless files": (lossless, [bytes(12) + b"\x90\x03\x09" + bytes(8)]),
        "records": (records, [written.encode()]),
        "settings": (settings, [manifest.to_json().encode()]),
    }
    if name == BODIES:  # an index is built for it
        web = Web(folder)
        made[BODIES] = web.ask, web.seeds()
    return made


def fuzz(name: str, runs: int, seed: int) -> None:
    """Fuzz one target in this process, which atheris ends."""
    target, seeds = targets(name)[name]

    def one(data: bytes) -> None:
        with suppress(ZtokError):
            target(data)

    with tempfile.TemporaryDirectory() as corpus:
        for number, example in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(example)
        options = {
            "atheris_runs": runs, "seed": seed + 1, "timeout": _SECONDS, "max_len": 4096,
            "rss_limit_mb": _MEGABYTES, "verbosity": 0, "print_final_stats": 1,
            "artifact_prefix": f"{tempfile.gettempdir()}/ztok-fuzz-",
        }  # fmt: skip
        flags = [f"-{option}={value}" for option, value in options.items()]
        # libFuzzer's timer goes on while Python ends.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)
        atheris.Setup([sys.argv[0], *flags, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
