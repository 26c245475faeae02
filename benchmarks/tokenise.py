"""The data stage, from a text file to verified token files, over the raw tokenizer alone.

Text is drawn at random from the paragraphs of the repository's corpus and written as JSON lines,
plain and as .zst; a byte-level BPE is trained on the corpus. The peer is one thread of Hugging
Face's `tokenizers` on texts that lie in memory, parsed already: `encode_batch`, and
`encode_batch_fast`, which leaves out the offsets; taking the ids out of it is not counted. Ours
reads, parses, tokenises, writes, joins, hashes and verifies, with one worker on one core and with
two on two: all of its processes are held to that many cores. The peer on both cores at once, a
process each, says how far two cores are twice one. Each run is a process of its own; they take
turns, and the ids of all are compared. Importing Megatron-core is left out; the start of the
workers, 0.2 s each, is not: with little text it shows.

    python -m benchmarks.tokenise --rounds 5
    python -m benchmarks.tokenise --rounds 3 --megabytes 64
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

CORPUS = Path(__file__).parents[1] / "corpus"
VOCABULARY = 16_000
FULL, FAST = "encode_batch", "encode_batch_fast"
# Documents at a time; the peer is fastest at about this many.
BATCH = 128
# What takes turns: the peer's call or our workers, and the file.
PEERS = ((FULL, "text.jsonl"), (FAST, "text.jsonl"))
TWICE = (f"2 x {FAST}", "text.jsonl")
OURS = tuple((workers, name) for name in ("text.jsonl", "text.jsonl.zst") for workers in (1, 2))


def prepare(directory: Path, megabytes: int, seed: int) -> None:
    """Write the text and train the tokenizer."""
    import zstandard

    from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer

    books = [str(path) for path in sorted(CORPUS.glob("*.txt.gz"))]
    make_tokenizer(
        TokenizerRequest(data_path=books, vocab_size=VOCABULARY),
        directory / "tokenizer/manifest.json",
    )
    text = "\n\n".join(gzip.decompress(Path(book).read_bytes()).decode() for book in books)
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    draw, lines, size = random.Random(seed), list[str](), 0
    while size < megabytes * 1_000_000:
        document = "\n\n".join(draw.choices(paragraphs, k=draw.randint(1, 12)))
        lines.append(json.dumps({"id": len(lines), "text": document}) + "\n")
        size += len(document)
    content = "".join(lines).encode()
    (directory / "text.jsonl").write_bytes(content)
    (directory / "text.jsonl.zst").write_bytes(zstandard.compress(content))


def run_peer(directory: Path, call: str, name: str) -> dict[str, Any]:
    """One thread of `tokenizers` over texts in memory."""
    import numpy as np

    from primus.dataset.tokenizer import load_tokenizer

    loaded = load_tokenizer(directory / "tokenizer/manifest.json")
    encode = getattr(loaded.tokenizer(), call)
    lines = (directory / name).read_bytes().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    groups = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    cpu, wall, digest, tokens = 0.0, 0.0, hashlib.sha256(), 0
    for group in groups:
        started = time.process_time(), time.perf_counter()
        encodings = encode(group, add_special_tokens=False)
        cpu += time.process_time() - started[0]
        wall += time.perf_counter() - started[1]
        for encoding in encodings:
            ids = np.array([*encoding.ids, loaded.manifest.eod_id], np.uint16)
            digest.update(ids.tobytes())
            tokens += len(ids)
    return {"cpu": cpu, "wall": wall, "tokens": tokens, "ids": digest.hexdigest()}


def run_ours(directory: Path, workers: str, name: str) -> dict[str, Any]:
    """The data stage's library, from the file to the manifest."""
    import primus.dataset.core  # noqa: F401
    from primus.dataset.build import DataRequest, build_data
    from primus.dataset.tokenizer import load_tokenizer

    loaded = load_tokenizer(directory / "tokenizer/manifest.json")
    request = DataRequest(dataset="random", data_path=[str(directory / name)], workers=int(workers))
    with tempfile.TemporaryDirectory(dir=directory) as output:
        cpu, wall = _used(), time.perf_counter()
        manifest = build_data(request, loaded, Path(output) / "manifest.json")
        cpu, wall = _used() - cpu, time.perf_counter() - wall
        ids = manifest.files["tokens.bin"].sha256
    return {"cpu": cpu, "wall": wall, "tokens": manifest.tokens, "ids": ids}


def _used() -> float:
    """Processor time of this process and of those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def turn(directory: Path, how: str | int, name: str) -> dict[str, Any]:
    """One run: ours on as many cores as it has workers, a peer's process on one.

    Raises:
        SystemExit: it fails; its last lines are shown.
    """
    cores = sorted(os.sched_getaffinity(0))
    if isinstance(how, int):
        return _started(directory, str(how), name, cores[:how])() | {"cores": how}
    count, _, call = how.rpartition(" x ")
    ends = [_started(directory, call, name, [core]) for core in cores[: int(count or 1)]]
    found = [end() for end in ends]
    return {
        "cpu": sum(one["cpu"] for one in found),
        "wall": max(one["wall"] for one in found),
        "tokens": sum(one["tokens"] for one in found),
        "ids": found[0]["ids"],
        "cores": len(found),
    }


def _started(
    directory: Path, how: str, name: str, cores: Sequence[int]
) -> Callable[[], dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tokenise", "--directory"]
    process = subprocess.Popen(
        [*command, str(directory), "--turn", how, name],
        env=os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> dict[str, Any]:
        out, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors[-2000:])
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    return end


def show(found: dict[tuple[str | int, str], list[dict[str, Any]]]) -> None:
    """Print the table; ratios are those of the same round."""
    print(
        "| what | tokens/s of processor time (min, max) | of encode_batch | of encode_batch_fast "
        "| tokens/s by the clock and core | of encode_batch_fast |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for (how, name), runs in found.items():
        speeds = [run["tokens"] / run["cpu"] for run in runs]
        by_clock = [run["tokens"] / run["wall"] / run["cores"] for run in runs]
        ratios = [
            median(
                own["tokens"] / own[key] / cores / (peer["tokens"] / peer[key])
                for own, peer in zip(runs, found[call], strict=True)
                for cores in (own["cores"] if key == "wall" else 1,)
            )
            for call, key in ((PEERS[0], "cpu"), (PEERS[1], "cpu"), (PEERS[1], "wall"))
        ]
        label = how if isinstance(how, str) else f"data stage, {how} of {name[4:]}"
        spread = f"{median(speeds):,.0f} ({min(speeds):,.0f}, {max(speeds):,.0f})"
        full, fast, clock = (f"{ratio:.2f}" for ratio in ratios)
        print(f"| {label} | {spread} | {full} | {fast} | {median(by_clock):,.0f} | {clock} |")
    scales = {name: ((2, name), (1, name)) for _, name in OURS} | {FAST: (TWICE, PEERS[1])}
    for name, (both, single) in scales.items():
        pairs = list(zip(found[both], found[single], strict=True))
        cpu, wall = (
            median(two["tokens"] / two[key] / (one["tokens"] / one[key]) for two, one in pairs)
            for key in ("cpu", "wall")
        )
        print(
            f"{name}: 2 over 1: {wall:.2f} times as fast; tokens per second of processor "
            f"time {cpu:.2f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=24, help="of text (24)")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.turn:
        run = run_ours if args.turn[0].isdigit() else run_peer
        print(json.dumps(run(args.directory, *args.turn)))
        return
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed")
    todo: list[tuple[str | int, str]] = [*PEERS, TWICE, *OURS]
    found: dict[tuple[str | int, str], list[dict[str, Any]]] = {one: [] for one in todo}
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made), args.megabytes, random.SystemRandom().randrange(1 << 32))
        for _ in range(args.rounds):
            for one in random.sample(todo, len(todo)):
                found[one].append(turn(Path(made), *one))
    if len({run["ids"] for runs in found.values() for run in runs}) != 1:
        raise SystemExit("the ids differ")
    tokens = found[todo[0]][0]["tokens"]
    print(f"{tokens:,} tokens, the same ids in all {args.rounds * len(todo)} runs")
    show(found)


if __name__ == "__main__":
    main()
