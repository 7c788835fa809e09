#!/usr/bin/env python3
"""Makes the texts of the quick start from clones of two public repositories.

    git clone https://github.com/mlschmitt/classic-books-markdown books
    git -C books checkout 944882722e9a96fa6cf2739dc2ea757e101f412f
    git clone https://github.com/chinese-poetry/chinese-poetry poetry
    git -C poetry checkout 99ebbef7e1345c0985c44b9fd96a3f9e776f117b
    python3 texts.py books poetry WORK ../text

writes

    WORK/pretraining/*.txt   the novels that the base model was pretrained on, one paragraph a line
    WORK/tokenizer/*.txt     what the tokenizer was trained on
    ../text/                 the small corpus the quick start continues on (committed)

The same clones give the same bytes. Needs git and zstd.
"""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

# Novels whose authors wrote in English and died before 1947, so that they are in the public domain both in the
# United States and where protection lasts 70 years or more after the author's death.
NOVELS = [
    "Anthony Trollope/Barchester Towers",
    "Arthur Conan Doyle/A Study in Scarlet",
    "Arthur Conan Doyle/The Hound of the Baskervilles",
    "Arthur Conan Doyle/The Lost World",
    "Arthur Conan Doyle/The Sign of the Four",
    "Bram Stoker/Dracula",
    "Charles Dickens/A Tale of Two Cities",
    "Charles Dickens/David Copperfield",
    "Charles Dickens/Great Expectations",
    "Charles Dickens/Oliver Twist",
    "Charlotte Bronte/Jane Eyre",
    "Elizabeth Gaskell/North and South",
    "Emily Bronte/Wuthering Heights",
    "George Eliot/Middlemarch",
    "George Eliot/Silas Marner",
    "H.G. Wells/The Invisible Man",
    "H.G. Wells/The Time Machine",
    "H.G. Wells/War of the Worlds",
    "Jane Austen/Emma",
    "Jane Austen/Mansfield Park",
    "Jane Austen/Pride and Prejudice",
    "Jane Austen/Sense and Sensibility",
    "Joseph Conrad/Lord Jim",
    "Kenneth Grahame/The Wind in the Willows",
    "L. Frank Baum/The Marvelous Land of Oz",
    "L. Frank Baum/The Wonderful Wizard of Oz",
    "Mark Twain/Adventures of Huckleberry Finn",
    "Mark Twain/The Adventures of Tom Sawyer",
    "Robert Louis Stevenson/Kidnapped",
    "Robert Louis Stevenson/Treasure Island",
    "Rudyard Kipling/Kim",
    "Rudyard Kipling/The Jungle Book",
    "Thomas Hardy/Far from the Madding Crowd",
    "Wilkie Collins/The Moonstone",
]


def committed(repository, path):
    """A file as it is in the checked-out commit of a clone."""
    git = ["git", "-C", str(repository), "show", f"HEAD:{path}"]
    return subprocess.run(git, check=True, capture_output=True).stdout.decode()


def book(books, name):
    """The text of a book without its head (title, author, year), with \\n line ends."""
    text = committed(books, name + ".md").replace("\r\n", "\n").replace("\r", "\n")
    _, _, text = text.partition("-------\n")
    return text.strip() + "\n"


def paragraphs(text):
    """Non-empty lines, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def chapters(text):
    """The text of each chapter, heading included."""
    parts = ("\n" + text).split("\n## ")
    return [part.strip() for part in parts if part.strip()]


def json_lines(records):
    """One {"text": ...} a line."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in records)


def write(path, data):
    """Writes bytes or text; .gz and .zst by the name."""
    data = data.encode() if isinstance(data, str) else data
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as member:
            member.write(data)
        data = packed.getvalue()
    elif path.suffix == ".zst":
        data = subprocess.run(["zstd", "-19", "-q", "-c"], input=data, check=True, capture_output=True).stdout
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def chinese(poetry):
    """name → list of documents, each a chapter or a poem."""
    analects = json.loads(committed(poetry, "论语/lunyu.json"))
    mencius = json.loads(committed(poetry, "四书五经/mengzi.json"))
    songs = json.loads(committed(poetry, "诗经/shijing.json"))
    tang = json.loads(committed(poetry, "全唐诗/唐诗三百首.json"))
    return {
        "analects": [c["chapter"] + "\n" + "\n".join(c["paragraphs"]) for c in analects],
        "mencius": [c["chapter"] + "\n" + "\n".join(c["paragraphs"]) for c in mencius],
        "songs": [s["title"] + "\n" + "\n".join(s["content"]) for s in songs],
        "tang": [p["title"] + " " + p["author"] + "\n" + "\n".join(p["paragraphs"]) for p in tang],
    }


def main(books, poetry, work, text):
    for name in NOVELS:
        author, title = name.split("/")
        lines = "\n".join(paragraphs(book(books, name))) + "\n"
        write(work / "pretraining" / f"{author}, {title}.txt", lines)

    alice = book(books, "Lewis Carroll/Alice's Adventures in Wonderland")
    glass = book(books, "Lewis Carroll/Through the Looking-Glass")
    write(text / "english" / "alice-in-wonderland.txt", alice)
    write(text / "english" / "through-the-looking-glass.jsonl.gz", json_lines(chapters(glass)))
    classics = chinese(poetry)
    write(text / "chinese" / "analects.txt", "\n\n".join(classics["analects"]) + "\n")
    write(text / "chinese" / "book-of-songs.txt.gz", "\n\n".join(classics["songs"]) + "\n")
    write(text / "chinese" / "mencius.jsonl.zst", json_lines(classics["mencius"]))
    write(text / "chinese" / "three-hundred-tang-poems.jsonl", json_lines(classics["tang"]))

    # The tokenizer sees some of the English and all of the Chinese.
    english = "".join("\n".join(paragraphs(book(books, name))) + "\n" for name in NOVELS[::6])
    write(work / "tokenizer" / "english.txt", english)
    write(work / "tokenizer" / "chinese.txt", "\n".join("\n".join(d) for d in classics.values()) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
