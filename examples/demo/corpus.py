"""Real text of eight clearly different domains that are on any machine the demo was installed on.

Nothing is fetched: all is read from Python itself, from the C++ compiler's headers and from the
packages of this environment, and nothing leaves the output folder. The texts keep their licences.

    >>> found = gather(DOMAINS, scale=1.0)
    >>> found[0].name, found[0].files, found[0].num_bytes
    ('python', 171, 3000079)

Deterministic on one machine: the files of a domain are ordered by the hash of their relative name,
so that the byte cap takes a cross-section and not just the letters A to D.
"""

import ast
import hashlib
import importlib.util
import os
import pydoc_data
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MIN_DOMAINS = 6
MIN_BYTES = 20_000  # less text than this is no domain
MAX_DOCUMENT = 60_000  # bytes of one document; longer ones are cut at a line's end
LANGUAGES = (
    *("ar", "cs", "de", "el", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko"),
    *("nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh_Hans"),
)

Documents = Iterator[tuple[str, bytes]]  # name for the ordering, raw bytes


@dataclass(frozen=True)
class Source:
    """A domain before it is read: where from, and how many bytes at most."""

    name: str
    title: str
    max_bytes: int
    read: Callable[[], Documents]
    needs: str


@dataclass
class Gathered:
    """A domain's documents, and what was left out on the way."""

    name: str
    title: str
    documents: list[str] = field(default_factory=list)
    num_bytes: int = 0
    duplicates: int = 0
    undecodable: int = 0
    missing: str = ""

    @property
    def files(self) -> int:
        """Number of documents kept."""
        return len(self.documents)


def gather_one(source: Source, scale: float) -> Gathered:
    """Read one domain up to `scale` times its byte cap; `.missing` says if there is too little."""
    found = Gathered(source.name, source.title)
    seen: set[bytes] = set()
    cap = int(source.max_bytes * scale)
    for _, raw in sorted(source.read(), key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if found.num_bytes >= cap:
            break
        raw = cut_at_line(raw, min(MAX_DOCUMENT, cap - found.num_bytes))
        digest = hashlib.sha256(raw).digest()
        if digest in seen:
            found.duplicates += 1
            continue
        seen.add(digest)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            found.undecodable += 1
            continue
        if text.strip():
            found.documents.append(text)
            found.num_bytes += len(raw)
    if found.num_bytes < MIN_BYTES * scale:
        found.missing = (
            f"domain {source.name!r} left out, only {found.num_bytes:,} bytes: needs {source.needs}"
        )
    return found


def cut_at_line(raw: bytes, limit: int) -> bytes:
    """Return at most `limit` bytes of `raw`, ending with a whole line (or character) if cut."""
    if len(raw) <= limit:
        return raw
    end = raw.rfind(b"\n", 0, limit) + 1
    return raw[:end] if end else raw[:limit].decode("utf-8", "ignore").encode()


def gather(
    sources: Iterable[Source], scale: float, on_done: Callable[[Gathered], None] = lambda _: None
) -> list[Gathered]:
    """Gather all domains; raise `LookupError` if fewer than six could be."""
    kept, missing = [], []
    for source in sources:
        found = gather_one(source, scale)
        on_done(found)
        if found.missing:
            missing.append(found.missing)
        else:
            kept.append(found)
    if len(kept) < MIN_DOMAINS:
        raise LookupError(
            f"{MIN_DOMAINS} domains needed, only {len(kept)} found here: " + "; ".join(missing)
        )
    return kept


# --- where the text is -------------------------------------------------------------------------


def files_below(root: Path, suffixes: tuple[str, ...], skip: tuple[str, ...] = ()) -> Documents:
    """Yield (relative name, bytes) of every readable file below `root` with one of the suffixes."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in skip and f != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffixes) and path.is_file():  # not a link to nowhere
                yield path.relative_to(root).as_posix(), path.read_bytes()


def package_folder(name: str) -> Path | None:
    """Return a package's folder without importing it, or None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def site_packages() -> Path:
    """Return the environment's folder of installed packages."""
    return Path(sysconfig.get_paths()["purelib"])


def python_sources() -> Documents:
    """Python's own standard library, without its tests and without installed packages."""
    skip = ("test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data")
    return files_below(Path(sysconfig.get_paths()["stdlib"]), (".py",), skip)


def headers() -> Documents:
    """C and C++: headers of torch, numpy, Python and the system's C++ library."""
    roots = [Path(sysconfig.get_paths()["include"])]
    roots += [p / sub for p, sub in ((package_folder("torch"), "include"),) if p]
    roots += [p / "_core" / "include" for p in (package_folder("numpy"),) if p]
    roots += sorted(Path("/usr/include/c++").glob("*"))[-1:]
    for root in roots:
        # ATen/ops holds thousands of generated files that are all alike.
        yield from files_below(root, (".h", ".hpp", ".cuh"), skip=("ops",))


def reference() -> Documents:
    """The topics of Python's language reference, as `help()` shows them: technical prose."""
    path = Path(pydoc_data.__path__[0]) / "topics.py"
    if path.exists():
        tree = ast.parse(path.read_bytes())
        values = (node.value for node in tree.body if isinstance(node, ast.Assign))
        for topics in values:
            for name, text in ast.literal_eval(topics).items():
                yield name, text.encode()


def licences() -> Documents:
    """Licence texts: legal English, often the same sentences for another holder."""
    wanted = re.compile(r"LICEN[CS]E|COPYING|NOTICE|COPYRIGHT", re.IGNORECASE)
    for path in sorted(site_packages().glob("*.dist-info/**/*")):
        if path.is_file() and wanted.search(path.name):
            yield path.relative_to(site_packages()).as_posix(), path.read_bytes()
    for path in sorted(Path("/usr/share/common-licenses").glob("*")):
        yield path.name, path.read_bytes()


def unicode_tables() -> Documents:
    """Character tables of the Unicode standard, in its own notation, a document per 256 codes."""
    for start in range(0, sys.maxunicode + 1, 256):
        rows = []
        for code in range(start, start + 256):
            char = chr(code)
            name = unicodedata.name(char, "")
            if not name or name.startswith(("CJK UNIFIED IDEOGRAPH-", "HANGUL SYLLABLE ")):
                continue
            fields = (
                *(f"{code:04X}", name, unicodedata.category(char), unicodedata.combining(char)),
                *(unicodedata.bidirectional(char), unicodedata.decomposition(char)),
                *(unicodedata.numeric(char, ""), "NY"[unicodedata.mirrored(char)]),
            )
            rows.append(";".join(map(str, fields)))
        if len(rows) >= 16:
            yield f"{start:06X}", "\n".join(rows).encode()


def translations() -> Documents:
    """Django's messages in 26 languages: sentences that people meet on web sites."""
    root = package_folder("django")
    if root:
        for language in LANGUAGES:
            for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.po")):
                lines = translated(path.read_text(encoding="utf-8"))
                yield path.relative_to(root).as_posix(), "\n".join(lines).encode()


def translated(catalogue: str) -> Iterator[str]:
    r"""Yield the translations of a .po file: `msgstr "a" "b"` gives `ab`; the header is skipped."""
    entries = re.findall(r'^msgstr(?:\[\d+\])? ((?:".*"\s*?\n)+)', catalogue + "\n", re.MULTILINE)
    for entry in entries[1:]:
        text = "".join(ast.literal_eval(line) for line in entry.splitlines() if line.strip())
        if text:
            yield text


def web() -> Documents:
    """HTML, CSS and JavaScript of installed packages; minified files are no text to learn."""
    roots = [package_folder(name) for name in ("django", "matplotlib", "torch", "idlelib")]
    for root in filter(None, roots):
        skip = ("i18n", "include", "lib")
        for name, raw in files_below(root, (".html", ".css", ".js"), skip):
            if ".min." not in name:
                yield f"{root.name}/{name}", raw


def readmes() -> Documents:
    """Read-me pages of the installed packages: Markdown and reStructuredText after the metadata."""
    for path in sorted(site_packages().glob("*.dist-info/METADATA")):
        yield path.parent.name, path.read_bytes().partition(b"\n\n")[2]


# Caps differ on purpose: the small domains go through several epochs while the large ones see one.
DOMAINS = (
    Source("python", "Python sources", 2_400_000, python_sources, "Python's standard library"),
    Source("cpp", "C and C++ headers", 1_600_000, headers, "headers of torch, numpy or g++"),
    Source("unicode", "Unicode tables", 800_000, unicode_tables, "the module unicodedata"),
    Source("messages", "messages, 26 languages", 600_000, translations, "the package django"),
    Source("reference", "language reference", 400_000, reference, "pydoc_data/topics.py"),
    Source("web", "HTML, CSS, JavaScript", 300_000, web, "the package django"),
    Source("readme", "read-me pages", 200_000, readmes, "installed packages (*.dist-info)"),
    Source("licence", "licences", 150_000, licences, "installed packages (*.dist-info)"),
)
