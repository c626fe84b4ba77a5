"""Draw broken files, read them in worker processes, and count what should not happen."""

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

import torch
from typer.main import get_command

from tests.fuzz import import_readers, mutations
from tests.fuzz.kinds import KINDS, Kind, write_templates
from tools import cli

MEMORY, SECONDS, PATIENCE = 2 * 2**30, 10, 90  # bytes, of processor time, of the clock
CASES_PER_WORKER = 200
GOOD = ("refused", "read", "ran")  # every other outcome is a finding


@dataclass(frozen=True)
class Outcome:
    name: str
    detail: str = ""  # message and traceback
    seconds: float = 0.0  # of processor time

    @property
    def signature(self) -> str:
        """What findings of one cause have in common."""
        lines = [line for line in self.detail.splitlines() if line.startswith('  File "')]
        ours = [line for line in lines if str(Path.cwd()) in line and "tests/fuzz" not in line]
        place = (ours or lines or [""])[-1].strip().replace(str(Path.cwd()) + "/", "")
        return f"{self.name}: {self.detail.splitlines()[0][:150] if self.detail else ''} {place}"


@dataclass(frozen=True)
class Draw:
    """Which cases there are."""

    seed: int
    only: list[str]  # kinds; none: all
    quick: bool = False  # few of those that take long

    def case(self, number: int) -> tuple[str, Random | None]:
        """The kind of a case, and the generator that breaks its file; the first are left whole."""
        names = self.only or list(KINDS)
        if number < len(names):
            return names[number], None
        rng = Random(f"{self.seed}:{number}")
        slow = [self.quick and not KINDS[name].is_fast for name in names]
        shares = [KINDS[n].share / (5 if s else 1) for n, s in zip(names, slow, strict=True)]
        return rng.choices(names, shares)[0], rng


def broken(kind: Kind, data: bytes, rng: Random) -> bytes:
    """Where what a mutation made cannot be written, bytes are broken instead."""
    try:
        return kind.mutate(data, rng)
    except Exception:
        return mutations.mutate_bytes(data, rng)


# In a worker -------------------------------------------------------------------------------------


def run_case(name: str, rng: Random | None, root: Path, real: float) -> tuple[Outcome, bytes]:
    """Break a file of a kind, let it be read, and put the whole one back.

    Args:
        rng: None leaves it whole, and then it must be read.
        real: how often what passes a check is really run.
    """
    kind, out = KINDS[name], root / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    file = root / kind.file
    if kind.copied:
        shutil.copytree(root / kind.copied, out / kind.copied)
        file = out / kind.file
    whole = file.read_bytes()
    data = whole if rng is None else broken(kind, whole, rng)
    try:
        file.write_bytes(data)
        outcome = _judged(kind, file, root, out, really=(rng or Random(name)).random() < real)
        if rng is None and outcome.name == "refused":
            outcome = Outcome("wrong", f"a whole file is refused: {outcome.detail}")
    finally:
        file.write_bytes(whole)
    if os.path.lexists(mutations.CANARY):
        os.unlink(mutations.CANARY)
        outcome = Outcome("code", outcome.detail)
    return outcome, data


def _judged(kind: Kind, file: Path, root: Path, out: Path, really: bool) -> Outcome:
    places = {"root": root, "file": file, "out": out}
    outcome, printed = _call(kind.check.format(**places), file, root)
    if outcome.name != "read":
        return outcome
    if kind.then and really:
        later, _ = _call(kind.then.format(**places), file, root)
        if later.name == "refused":
            return Outcome("later", later.detail)
        if later.name != "read":
            return later
        outcome = Outcome("ran")
    try:
        wrong = kind.oracle(file, printed)
    except Exception as error:
        wrong = f"the oracle: {type(error).__name__}: {error}\n{traceback.format_exc()}"
    return Outcome("wrong", wrong) if wrong else outcome


@functools.cache
def _command() -> Callable[..., None]:
    """The command line, built once: typer builds it anew at every call, which takes longest."""
    return get_command(cli.app)


def _call(line: str, file: Path, root: Path) -> tuple[Outcome, str]:
    """Run a command line in this process."""
    errors: list[BaseException] = []
    app, command = cli.app, _command()

    def watched(**options: object) -> int | None:
        try:
            return command(**options)
        except SystemExit:
            raise
        except BaseException as error:  # also a panic of hotcoco, which is no Exception
            errors.append(error)
            raise

    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["sebench", *line.split()]
    cli.app = watched
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        errors = errors or [error]
    finally:
        cli.app = app
    printed, said = out.getvalue(), err.getvalue()
    if errors:
        return _refusal(errors[-1], said, file, root), printed
    if code:
        return Outcome("refused" if said else "unclear", said or f"exit code {code}"), printed
    return Outcome("read"), printed


def _refusal(error: BaseException, said: str, file: Path, root: Path) -> Outcome:
    """Whether an error is one that a person can act on."""
    text = "".join(traceback.format_exception(error))
    if "allocate memory" in text or "MemoryError" in text:
        return Outcome("memory", f"{type(error).__name__}: {str(error)[:300]}\n{text[-6000:]}")
    own = type(error).__module__.split(".")[0] in ("backbones", "classification", "detection", "scene", "tools")  # fmt: skip
    known = isinstance(error, ValueError) and (type(error) is ValueError or own)
    if isinstance(error, FloatingPointError) or (isinstance(error, OSError) and error.filename):
        known = True
    detail = f"{type(error).__name__}: {str(error)[:1000]}\n{text[-6000:]}"
    if not known:
        return Outcome("fault", detail)
    line = said.strip()
    if any(
        (ord(sign) < 32 and sign not in "\n\t") or 0xD800 <= ord(sign) < 0xE000 for sign in line
    ):
        return Outcome("unclear", f"control characters: {ascii(line)[:500]}\n{text[-6000:]}")
    if len(line) > 5000:
        return Outcome("unclear", f"{len(line)} characters\n{text[-6000:]}")
    hints = (file.name, str(file.parent), str(root), "=", "key", "recipe", "unknown", "--import", "settings", "backbones:", "no such file", "File name too long")  # fmt: skip
    if not any(hint in line for hint in hints):
        return Outcome("unclear", f"names no file: {detail}")
    return Outcome("refused", str(error)[:500])


def _work(connection: Connection, root: Path, draw: Draw, real: float) -> None:
    """Body of a worker: numbers of cases in, outcomes out."""
    os.setsid()
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (number := connection.recv()) is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        name, rng = draw.case(number)
        begun = time.process_time()
        outcome, data = run_case(name, rng, root, real)
        outcome = replace(outcome, seconds=time.process_time() - begun)
        connection.send((outcome, data if outcome.name not in GOOD else b""))


# In the parent -----------------------------------------------------------------------------------


class Worker:
    """A forked process with whole files of its own, and the case it is at."""

    def __init__(self, templates: Path, place: Path, *arguments: object) -> None:
        self.root, self._templates, self._arguments = place, templates, arguments
        self._start()

    def _start(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._templates, self.root)
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_work, args=(theirs, self.root, *self._arguments))
        self._process.start()
        theirs.close()
        self.done, self.number = 0, None

    def give(self, number: int) -> None:
        if self.done >= CASES_PER_WORKER:
            self.stop()
            self._start()
        self.number, self._begun, self._used = number, time.monotonic(), self._seconds()
        self.connection.send(number)

    def take(self) -> tuple[Outcome, bytes]:
        """What the worker has found, or how it ended."""
        try:
            found = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            found = Outcome("crash", f"the process ended with {self._process.exitcode}"), b""
            self._start()
        self.done += 1
        self.number = None
        return found

    def is_hanging(self) -> bool:
        clock = time.monotonic() - self._begun
        return clock > SECONDS and (self._seconds() - self._used > SECONDS or clock > PATIENCE)

    def kill(self) -> tuple[Outcome, bytes]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._start()
        return Outcome("hang", f"more than {SECONDS} s"), b""

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self._process.join(timeout=5)
        if self._process.is_alive():
            self.kill()

    def _seconds(self) -> float:
        """Processor time that the process and the children it has waited for have used."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Findings:
    """Counts outcomes, and keeps the inputs of what should not happen."""

    def __init__(self, folder: Path, seed: int, kept: int = 3) -> None:
        self.folder, self.seed, self.kept = folder, seed, kept
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.signatures: dict[str, list[tuple[str, int]]] = {}

    def add(self, number: int, name: str, outcome: Outcome, data: bytes) -> None:
        self.outcomes[name, outcome.name] += 1
        self.seconds[name] += outcome.seconds
        if outcome.name in GOOD:
            return
        found = self.signatures.setdefault(outcome.signature, [])
        found.append((name, number))
        if len(found) <= self.kept:
            place = self.folder / f"{outcome.name}-{name}-{self.seed}-{number}"
            place.mkdir(parents=True, exist_ok=True)
            (place / Path(KINDS[name].file).name).write_bytes(data)
            (place / "what.txt").write_text(outcome.detail, "utf-8", "backslashreplace")

    @property
    def count(self) -> int:
        return sum(map(len, self.signatures.values()))

    def describe(self, every_kind: bool = True) -> str:
        lines = []
        if every_kind:
            names = sorted({name for _, name in self.outcomes}, key=lambda n: (n not in GOOD, n))
            lines.append(f"{'kind':24}" + "".join(f"{name:>9}" for name in (*names, "seconds")))
            for kind in KINDS:
                row = [self.outcomes[kind, name] for name in names]
                if any(row):
                    counts = "".join(f"{count or '':>9}" for count in row)
                    lines.append(f"{kind:24}{counts}{self.seconds[kind]:9.1f}")
        for signature, cases in sorted(self.signatures.items(), key=lambda item: -len(item[1])):
            examples = ", ".join(f"--kind {name} --case {number}" for name, number in cases[:2])
            lines.append(f"{len(cases)} x {ascii(signature)[1:-1]}  [{examples}]")
        total = Counter()
        for (_, name), count in self.outcomes.items():
            total[name] += count
        bad = ("code", "crash", "hang", "memory", "fault", "unclear", "later", "wrong")
        lines.append(
            f"{sum(total.values())} files, seed {self.seed}: "
            + ", ".join(f"{total[name]} {name}" for name in (*GOOD, *bad))
        )
        return "\n".join(lines)


def fuzz(numbers: range, arguments: argparse.Namespace, templates: Path) -> Findings:
    """Run cases in workers; prints how far it is to stderr."""
    findings = Findings(arguments.findings, arguments.seed)
    _command()  # before workers are forked
    draw = Draw(arguments.seed, arguments.kind, arguments.quick)
    workers = [
        Worker(templates, templates.parent / f"worker-{i}", draw, arguments.real)
        for i in range(arguments.jobs)
    ]
    waiting, begun, told = iter(numbers), time.monotonic(), 0.0

    def record(worker: Worker, number: int, found: tuple[Outcome, bytes]) -> None:
        name, rng = draw.case(number)
        outcome, data = found
        if outcome.name in ("crash", "hang"):  # the worker could not hand it over
            data = broken(KINDS[name], (templates / KINDS[name].file).read_bytes(), rng)
        findings.add(number, name, outcome, data)

    try:
        for worker in workers:
            if (number := next(waiting, None)) is not None:
                worker.give(number)
        while busy := [worker for worker in workers if worker.number is not None]:
            ready = wait([worker.connection for worker in busy], timeout=0.5)
            for worker in busy:
                if worker.connection in ready or worker.is_hanging():
                    number = worker.number
                    record(worker, number, worker.take() if worker.connection in ready else worker.kill())  # fmt: skip
                    worker.number = None
                    if (number := next(waiting, None)) is not None:
                        worker.give(number)
            done, clock = sum(findings.outcomes.values()), time.monotonic() - begun
            if clock - told > 5 and done:
                told, left = clock, clock / done * (len(numbers) - done)
                print(f"{done} of {len(numbers)} files, {findings.count} findings, {left / 60:.1f} min left", file=sys.stderr)  # fmt: skip
    except KeyboardInterrupt:
        done = sum(findings.outcomes.values())
        print(f"stopped; go on with --start {numbers.start + done}", file=sys.stderr)
    finally:
        for worker in workers:
            worker.stop()
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kind", action="append", default=[], choices=KINDS)
    parser.add_argument("--case", type=int, help="run this one in the foreground")
    parser.add_argument("--real", type=float, default=0.2, help="share of accepted data that is trained on")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few of the kinds that take long")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_readers()
    with tempfile.TemporaryDirectory(prefix="sebench-fuzz-") as folder:
        templates = Path(folder) / "whole"
        templates.mkdir()
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        # In a child, so that no thread runs in the process that workers are forked from.
        child = multiprocessing.get_context("fork").Process(target=write_templates, args=(templates,))  # fmt: skip
        child.start()
        child.join()
        if child.exitcode:
            return 2
        if arguments.case is not None:
            draw = Draw(arguments.seed, arguments.kind, arguments.quick)
            name, rng = draw.case(arguments.case)
            outcome, data = run_case(name, rng, templates, arguments.real)
            print(name, outcome.name, outcome.detail, f"{len(data)} bytes", sep="\n")
            return outcome.name not in GOOD
        numbers = range(arguments.start, arguments.start + arguments.files)
        findings = fuzz(numbers, arguments, templates)
    print(findings.describe())
    return 1 if findings.count else 0


if __name__ == "__main__":
    sys.exit(main())
