"""Make the files of this directory from two Debian packages (see README.md).

dpkg-deb -x bible-kjv-text_4.38_all.deb deb
dpkg-deb -x bible-kjv_4.38_amd64.deb deb
dpkg-deb -x r-cran-janeaustenr_1.0.0-1_all.deb deb
python corpus/prepare.py deb
"""

from __future__ import annotations

import gzip
import itertools
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSE = re.compile(r"^(?P<book>\d?[A-Z][A-Za-z]*)(?P<chapter>\d+):\d+ (?P<text>.*)$")

NOVELS = {
    "prideprejudice": ("austen-pride-and-prejudice", "Pride and Prejudice"),
    "persuasion": ("austen-persuasion", "Persuasion"),
}

# The package's short name of each book, and the name printed above its chapters.
PARTS = {
    "bible-kjv-1-law-and-history": (
        "Ge Genesis, Exo Exodus, Lev Leviticus, Num Numbers, Deu Deuteronomy, Josh Joshua, "
        "Jdgs Judges, Ruth Ruth, 1Sm 1 Samuel, 2Sm 2 Samuel, 1Ki 1 Kings, 2Ki 2 Kings, "
        "1Chr 1 Chronicles, 2Chr 2 Chronicles, Ezra Ezra, Neh Nehemiah, Est Esther"
    ),
    "bible-kjv-2-poetry-and-prophets": (
        "Job Job, Psa Psalms, Prv Proverbs, Eccl Ecclesiastes, SSol Song of Solomon, Isa Isaiah, "
        "Jer Jeremiah, Lam Lamentations, Eze Ezekiel, Dan Daniel, Hos Hosea, Joel Joel, "
        "Amos Amos, Obad Obadiah, Jonah Jonah, Mic Micah, Nahum Nahum, Hab Habakkuk, "
        "Zep Zephaniah, Hag Haggai, Zec Zechariah, Mal Malachi"
    ),
    "bible-kjv-3-new-testament": (
        "Mat Matthew, Mark Mark, Luke Luke, John John, Acts Acts, Rom Romans, 1Cor 1 Corinthians, "
        "2Cor 2 Corinthians, Gal Galatians, Eph Ephesians, Phi Philippians, Col Colossians, "
        "1Th 1 Thessalonians, 2Th 2 Thessalonians, 1Tim 1 Timothy, 2Tim 2 Timothy, Titus Titus, "
        "Phmn Philemon, Heb Hebrews, Jas James, 1Pet 1 Peter, 2Pet 2 Peter, 1Jn 1 John, "
        "2Jn 2 John, 3Jn 3 John, Jude Jude, Rev Revelation"
    ),
}


def main() -> None:
    """Write every file of the corpus."""
    root = Path(sys.argv[1]).resolve()
    names = {
        short: (part, name)
        for part, books in PARTS.items()
        for short, name in (book.split(" ", 1) for book in books.split(", "))
    }
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for (short, chapter), verses in chapters_of_the_bible(root):
        part, name = names[short]
        parts[part].append("\n".join([f"{name} {chapter}", "", *verses]))
    for part, documents in parts.items():
        write(part, documents)
    for variable, lines in novels(root):
        if variable in NOVELS:
            name, title = NOVELS[variable]
            write(name, chapters_of_a_novel(title, lines))


def chapters_of_the_bible(root: Path) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Every chapter as ((short name, number), verses), printed by the package's own program."""
    command = [root / "usr/bin/bible", "-f", "Gen1:1-Rev22:21"]
    printed = subprocess.run(
        command, cwd=root / "usr/lib", stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    lines = printed.stdout.decode("ascii").splitlines()
    verses = [match for line in lines if (match := VERSE.match(line))]
    if len(verses) != len(lines) or len(lines) != 31102:
        raise SystemExit(f"{len(lines)} lines, {len(verses)} verses; expected 31102 of each")
    for place, group in itertools.groupby(verses, key=lambda verse: verse.group("book", "chapter")):
        yield place, [verse["text"].strip() for verse in group]


def novels(root: Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of each novel, out of R's lazy-load database (serialization format 2 or 3)."""
    data = root / "usr/lib/R/site-library/janeaustenr/data"
    index = zlib.decompress((data / "Rdata.rdx").read_bytes(), 31)
    database = (data / "Rdata.rdb").read_bytes()
    entry = struct.pack(">ii", 13, 2)  # an integer vector of two: offset and length
    places = [
        struct.unpack(">ii", index[found.end() : found.end() + 8])
        for found in re.finditer(re.escape(entry), index)
    ]
    names = re.findall(rb"\x00\x04\x00\t\x00\x00\x00.([a-z]+)", index, re.DOTALL)
    names = [name.decode() for name in names if name not in (b"names", b"variables")]
    for name, (offset, length) in zip(names, places, strict=False):
        yield name, character_vector(zlib.decompress(database[offset + 4 : offset + length]))


def character_vector(serialized: bytes) -> list[str]:
    """Decode R's binary serialization of a character vector."""
    version = struct.unpack_from(">i", serialized, 2)[0]
    position = 14 if version == 2 else 18 + struct.unpack_from(">i", serialized, 14)[0]
    count = struct.unpack_from(">i", serialized, position + 4)[0]
    position += 8
    lines = []
    for _ in range(count):
        length = struct.unpack_from(">i", serialized, position + 4)[0]
        lines.append(serialized[position + 8 : position + 8 + length].decode())
        position += 8 + length
    return lines


def chapters_of_a_novel(title: str, lines: Iterable[str]) -> list[str]:
    """Split at chapter headings; join the lines of a paragraph; drop `_` around emphasis."""
    text = "\n".join(line.replace("_", "").strip() for line in lines)
    text = re.sub(r"\n+(THE END|FINIS|Finis)\n*$", "", text)
    _, *chapters = re.split(r"^(?=chapter \d+$)", text, flags=re.IGNORECASE | re.MULTILINE)
    documents = []
    for chapter in chapters:
        paragraphs = re.split(r"\n\n+", chapter.strip())
        paragraphs = [" ".join(paragraph.split()) for paragraph in paragraphs]
        documents.append("\n\n".join([f"{title}, {paragraphs[0]}", *paragraphs[1:]]))
    return documents


def write(name: str, documents: list[str]) -> None:
    """One .txt.gz, documents separated by a line that holds a form feed; the same bytes always."""
    content = "\n\f\n".join(documents) + "\n"
    path = HERE / f"{name}.txt.gz"
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as stream:
        stream.write(content.encode())
    print(f"{path.name}: {len(documents)} documents, {len(content)} characters")


if __name__ == "__main__":
    main()
