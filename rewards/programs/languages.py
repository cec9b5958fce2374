"""The languages that programs may be written in; add one by adding a row."""

import shutil
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How the programs of a language are recognised, built and run.

    Commands may use {python} (the interpreter) and {work} (the private folder, which holds `file`).
    `build` is a shell command that writes {work}/program.
    """

    name: str
    labels: tuple[str, ...]  # of fenced blocks
    file: str
    run: tuple[str, ...]
    build: str = ""
    tools: tuple[str, ...] = ()  # that must be installed
    install: str = ""  # what to say if one is not
    address_space: bool = True  # whether the limit of memory may count reserved addresses
    stack_mb: int = 16  # recursion of compiled programs lives on the stack


SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where tools are looked for: the folders that a sandbox sees."""
_MAIN = """\
__builtins__.exit = __builtins__.quit = __import__("sys").exit
__import__("sys").path.append("/packages")
del __import__("sys").argv[0]
exec(compile(open(__import__("sys").argv[0], "rb").read(), "program.py", "exec"))
"""
"""Starts without `site`; the program is `__main__` and finds no name of ours in it."""

LANGUAGES = {
    language.name: language
    for language in (
        Language(
            name="python",
            labels=("python", "py", "python3"),
            file="program.py",
            run=("{python}", "-I", "-S", "-B", "-X", "utf8", "-c", _MAIN, "{work}/program.py"),
        ),
        Language(
            name="bash",
            labels=("bash", "sh", "shell"),
            file="program.sh",
            run=("bash", "{work}/program.sh"),
            tools=("bash",),
            install="apt-get install bash",
        ),
        Language(
            name="javascript",
            labels=("javascript", "js", "node"),
            file="program.js",
            run=("node", "--max-old-space-size=512", "{work}/program.js"),
            tools=("node",),
            install="apt-get install nodejs",
            address_space=False,
        ),
        Language(
            name="c",
            labels=("c",),
            file="program.c",
            build="gcc -O2 -std=c17 -w -o {work}/program {work}/program.c -lm",
            run=("{work}/program",),
            tools=("gcc",),
            install="apt-get install gcc",
            stack_mb=256,
        ),
        Language(
            name="cpp",
            labels=("cpp", "c++", "cc", "cxx"),
            file="program.cpp",
            build="g++ -O2 -std=c++17 -w -o {work}/program {work}/program.cpp",
            run=("{work}/program",),
            tools=("g++",),
            install="apt-get install g++",
            stack_mb=256,
        ),
    )
}


def find_language(name: str) -> Language:
    """A language by name or label. Raises ValueError, also if its tools are not installed."""
    wanted = name.strip().lower()
    for language in LANGUAGES.values():
        if wanted in (language.name, *language.labels):
            missing = [tool for tool in language.tools if not shutil.which(tool, path=SYSTEM_PATH)]
            if missing:
                raise ValueError(
                    f"programs in {language.name} need {', '.join(missing)} in one of "
                    f"{SYSTEM_PATH}: {language.install}"
                )
            return language
    raise ValueError(f"unknown language {name!r}; known: {', '.join(LANGUAGES)}")
