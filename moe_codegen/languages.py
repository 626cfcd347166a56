"""Languages as data: which files are theirs and how their comments look. The thirty of The Stack v1.0."""

from dataclasses import dataclass
from functools import cache

C_BLOCK = (b"/*", b"*/")


@dataclass(frozen=True)
class Language:
    """One language: its extensions and whole file names (lower case), and its comment markers.

    `column_one_comments` are markers only where a line begins with them.
    """

    name: str
    extensions: tuple[str, ...]
    file_names: tuple[str, ...] = ()
    line_comments: tuple[bytes, ...] = ()
    block_comments: tuple[tuple[bytes, bytes], ...] = ()
    column_one_comments: tuple[bytes, ...] = ()


def _like_c(name: str, *extensions: str) -> Language:
    return Language(name, extensions, (), (b"//",), (C_BLOCK,))


LANGUAGES = {
    language.name: language
    for language in (
        Language("assembly", (".asm", ".s", ".nasm"), (), (b";", b"#"), (C_BLOCK,)),
        Language("batchfile", (".bat", ".cmd"), (), (b"::", b"REM ", b"rem ")),
        _like_c("c", ".c", ".h"),
        _like_c("c-sharp", ".cs", ".csx"),
        Language("cmake", (".cmake",), ("cmakelists.txt",), (b"#",)),
        _like_c("cpp", ".cpp", ".cc", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".ipp", ".inl"),
        Language("css", (".css",), (), (), (C_BLOCK,)),
        Language("dockerfile", (".dockerfile",), ("dockerfile", "containerfile"), (b"#",)),
        # In fixed form any C in column one begins a comment; in free form it begins `call` and `contains`.
        Language(
            "fortran",
            (".f", ".f90", ".f95", ".f03", ".for"),
            (),
            (b"!",),
            column_one_comments=(b"*", *(letter + after for letter in (b"C", b"c") for after in (b" ", b"*", b"-"))),
        ),
        _like_c("go", ".go"),
        Language("haskell", (".hs", ".lhs"), (), (b"--",), ((b"{-", b"-}"),)),
        Language("html", (".html", ".htm", ".xhtml"), (), (), ((b"<!--", b"-->"),)),
        _like_c("java", ".java"),
        _like_c("javascript", ".js", ".mjs", ".cjs", ".jsx"),
        Language("julia", (".jl",), (), (b"#",), ((b"#=", b"=#"),)),
        Language("lua", (".lua",), (), (b"--",), ((b"--[[", b"]]"),)),
        Language("makefile", (".mk", ".mak"), ("makefile", "gnumakefile"), (b"#",)),
        Language("markdown", (".md", ".markdown")),
        Language("perl", (".pl", ".pm", ".t"), (), (b"#",)),
        Language("php", (".php", ".phtml"), (), (b"//", b"#"), (C_BLOCK,)),
        Language("powershell", (".ps1", ".psm1", ".psd1"), (), (b"#",), ((b"<#", b"#>"),)),
        Language("python", (".py", ".pyi", ".pyw"), (), (b"#",), ((b'"""', b'"""'), (b"'''", b"'''"))),
        Language("ruby", (".rb", ".rake", ".gemspec"), ("rakefile", "gemfile"), (b"#",), ((b"=begin", b"=end"),)),
        _like_c("rust", ".rs"),
        _like_c("scala", ".scala", ".sc"),
        Language("shell", (".sh", ".bash", ".zsh"), (), (b"#",)),
        Language("sql", (".sql",), (), (b"--",), (C_BLOCK,)),
        Language("tex", (".tex", ".sty", ".cls"), (), (b"%",)),
        _like_c("typescript", ".ts", ".tsx", ".mts", ".cts"),
        Language("visual-basic", (".vb", ".bas", ".vbs"), (), (b"'", b"REM ", b"Rem ")),
    )
}
_BY_EXTENSION = {extension: language.name for language in LANGUAGES.values() for extension in language.extensions}
_BY_FILE_NAME = {name: language.name for language in LANGUAGES.values() for name in language.file_names}
_OTHER_SPELLINGS = {
    "c++": "cpp",
    "c#": "c-sharp",
    "csharp": "c-sharp",
    "golang": "go",
    "js": "javascript",
    "py": "python",
    "ts": "typescript",
}


@cache
def canonical_language(name: str) -> str:
    """The spelling used here for a language as a dataset spells it: `C++` is `cpp`, `Visual Basic` `visual-basic`."""
    spelled = name.strip().lower().replace(" ", "-").replace("_", "-")
    return _OTHER_SPELLINGS.get(spelled, spelled)


def language_of_path(path: str) -> str | None:
    """The language of a file by its name, or None."""
    name = path.lower().rpartition("/")[2]
    stem, dot, extension = name.rpartition(".")
    return _BY_FILE_NAME.get(name) or (_BY_EXTENSION.get(dot + extension) if stem else None)
