# SPDX-License-Identifier: Apache-2.0
"""Time collectives and check every result, in nccl-tests' terms.

`hccomm bench` runs this on every rank; bench/peers.py runs the same cases over other libraries,
which it dresses as an Adapter. ``size`` is the larger of what a rank sends and receives in bytes,
``count`` the elements of one call as in the C ABI; algbw is size / time and busbw corrects it by
how much of the data must cross a link, so that it compares with the hardware.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from hccomm.buffers import DTYPES, SIZES
from hccomm.errors import InvalidArgument, Unavailable
from hccomm.requests import OP_CODES

if TYPE_CHECKING:
    import numpy

BENCHES = (
    *("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce", "gather", "scatter"),
    *("all_to_all", "barrier", "sendrecv"),
)
SIZES_BY_NAME = dict(zip(DTYPES, SIZES, strict=True))  # bytes of one element
_REDUCING = ("all_reduce", "reduce_scatter", "reduce")
_ROOTED = ("broadcast", "reduce", "gather", "scatter")
_ONE_BUFFER = ("all_reduce", "broadcast", "reduce")
_NO_IN_PLACE = ("all_to_all", "sendrecv")
_NUMPY_NAMES = {
    "bool": "?", "i8": "i1", "i16": "i2", "i32": "i4", "i64": "i8", "u8": "u1", "u16": "u2",
    "u32": "u4", "u64": "u8", "f16": "f2", "f32": "f4", "f64": "f8", "c64": "c8", "c128": "c16",
}  # fmt: skip
_ML_NAMES = {"bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}
_PERIOD = 5  # the inputs repeat after so many elements, and so do the results


class Adapter(Protocol):
    """A library under test: hccomm's Communicator, or what bench/peers.py makes look like one."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_reduce(self, buffer: Any, op: Any, *, out: Any) -> Any: ...
    def reduce_scatter(self, buffer: Any, op: Any, *, out: Any) -> Any: ...
    def reduce(self, buffer: Any, op: Any, *, root: int, out: Any) -> Any: ...
    def broadcast(self, buffer: Any, root: int) -> Any: ...
    def all_gather(self, buffer: Any, *, out: Any) -> Any: ...
    def gather(self, buffer: Any, *, root: int, out: Any) -> Any: ...
    def scatter(self, buffer: Any, *, root: int, out: Any) -> Any: ...
    def all_to_all(self, buffer: Any, *, out: Any) -> Any: ...
    def barrier(self) -> Any: ...
    def sendrecv(self, buffer: Any, dest: int, out: Any, source: int) -> Any: ...


class Options(NamedTuple):
    """What to run. Sizes in bytes; ``seconds`` is the time to spend on one size and mode."""

    sizes: Sequence[int]
    dtype: str = "f32"
    op: str = "sum"
    root: int = 0
    seconds: float = 0.1
    iterations: int = 0  # 0: as many as fit into `seconds`
    warmup: int = 3
    check: bool = True


class Row(NamedTuple):
    """One measurement, the same on every rank."""

    collective: str
    size: int
    elements: int  # the count of the call
    dtype: str
    op: str
    root: int
    mode: str  # "out" or "in" place
    time_us: float  # mean of a call, mean over the ranks
    min_us: float  # of the best of the batches, likewise
    iterations: int
    algbw: float  # GB/s, 1e9 bytes
    busbw: float
    wrong: int  # elements, over all ranks; -1 where nobody looked


def numpy_dtype(name: str) -> numpy.dtype[Any]:
    """Return NumPy's type for one of hccomm's names."""
    try:
        import numpy
    except ImportError as error:
        raise Unavailable("bench: it needs NumPy; pip install 'hccomm[bench]'") from error
    if name in _NUMPY_NAMES:
        return numpy.dtype(_NUMPY_NAMES[name])
    if name not in _ML_NAMES:
        raise InvalidArgument(f"bench: dtype={name!r} is none; use one of {', '.join(DTYPES)}")
    try:
        import ml_dtypes
    except ImportError as error:
        raise Unavailable(f"bench: {name} needs ml_dtypes; pip install ml_dtypes") from error
    found: numpy.dtype[Any] = numpy.dtype(getattr(ml_dtypes, _ML_NAMES[name]))
    return found


def bus_factor(collective: str, ranks: int) -> float:
    """Return busbw / algbw, as nccl-tests defines it."""
    if collective == "all_reduce":
        return 2.0 * (ranks - 1) / ranks
    if collective in ("all_gather", "reduce_scatter", "gather", "scatter", "all_to_all"):
        return (ranks - 1) / ranks
    return 1.0


def run(
    comm: Adapter, collective: str, options: Options, modes: Sequence[str] = ("out", "in")
) -> Iterator[Row]:
    """Measure ``collective`` at every size, out of place and then in place. Collective."""
    if collective not in BENCHES:
        raise InvalidArgument(f"bench: {collective!r} is none; use one of {', '.join(BENCHES)}")
    if options.op not in OP_CODES:
        raise InvalidArgument(f"bench: op={options.op!r} is none; use one of {', '.join(OP_CODES)}")
    dtype = numpy_dtype(options.dtype)
    for size in [0] if collective == "barrier" else options.sizes:
        for mode in (each for each in _modes(collective) if each in modes):
            yield _measure(comm, _Case(comm, collective, size, dtype, options, mode), options)


def _modes(collective: str) -> tuple[str, ...]:
    if collective in ("barrier", *_NO_IN_PLACE):
        return ("out",)
    return ("in",) if collective == "broadcast" else ("out", "in")


def last_mode(collective: str) -> str:
    """Return the mode whose row ends the line of one size."""
    return _modes(collective)[-1]


class _Case:
    """The buffers of one size and mode, the call to time, and what must come out."""

    def __init__(
        self,
        comm: Adapter,
        collective: str,
        size: int,
        dtype: numpy.dtype[Any],
        options: Options,
        mode: str,
    ) -> None:
        import numpy

        self.comm, self.collective, self.mode = comm, collective, mode
        self.dtype, self.op, self.root = dtype, options.op, options.root
        parts = 1 if collective in (*_ONE_BUFFER, "sendrecv", "barrier") else comm.size
        self.count = size // dtype.itemsize // parts  # elements, as in the C ABI
        self.size = self.count * parts * dtype.itemsize
        small, large = self.count, self.count * parts
        gathers = collective in ("all_gather", "gather")
        self.input = numpy.empty(small if gathers else large, dtype)
        self.output = numpy.empty(
            small if collective in ("reduce_scatter", "scatter") else large, dtype
        )
        if mode == "in" and parts == 1:
            self.output = self.input
        elif mode == "in" and gathers:
            self.input = self.output[comm.rank * small : (comm.rank + 1) * small]
        elif mode == "in":
            self.output = self.input[comm.rank * small : (comm.rank + 1) * small]

    def fill(self) -> None:
        """Write this rank's input."""
        if self.count:
            self.input[:] = self._tiled(self._pattern(self.comm.rank), self.input.size)

    def call(self) -> None:
        """Run the collective once."""
        comm, name, root = self.comm, self.collective, self.root
        if name in _REDUCING and name != "reduce":
            getattr(comm, name)(self.input, self.op, out=self.output)
        elif name == "reduce":
            comm.reduce(self.input, self.op, root=root, out=self.output)
        elif name in ("gather", "scatter"):
            getattr(comm, name)(self.input, root=root, out=self.output)
        elif name == "broadcast":
            comm.broadcast(self.input, root)
        elif name == "barrier":
            comm.barrier()
        elif name == "sendrecv":
            right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            comm.sendrecv(self.input, right, self.output, left)
        else:
            getattr(comm, name)(self.input, out=self.output)

    def wrong(self) -> int:
        """Return how many elements of this rank's output are not what they must be."""
        import numpy

        if self.count == 0 or (self.collective in ("reduce", "gather") and not self._is_root()):
            return 0
        wanted = self._wanted()
        if self.op == "avg" and self.collective in _REDUCING:  # a division rounds
            found = self.output.astype("f8")
            close = numpy.isclose(found, wanted.astype("f8"), rtol=0.01)
            return int(numpy.count_nonzero(~close))
        return int(numpy.count_nonzero(self.output != wanted))

    def _is_root(self) -> bool:
        return self.comm.rank == self.root

    def _wanted(self) -> Any:
        import numpy

        comm, name, count = self.comm, self.collective, self.count
        if name in _REDUCING:
            total = self._reduced()
            begin = comm.rank * count if name == "reduce_scatter" else 0
            return self._tiled(numpy.roll(total, -begin), count)
        if name in ("all_gather", "gather"):
            return numpy.concatenate(
                [self._tiled(self._pattern(rank), count) for rank in range(comm.size)]
            )
        if name == "broadcast":
            return self._tiled(self._pattern(self.root), count)
        if name == "sendrecv":
            return self._tiled(self._pattern((comm.rank - 1) % comm.size), count)
        begin = comm.rank * count
        if name == "scatter":
            return self._tiled(numpy.roll(self._pattern(self.root), -begin), count)
        return numpy.concatenate(
            [
                self._tiled(numpy.roll(self._pattern(rank), -begin), count)
                for rank in range(comm.size)
            ]
        )

    def _pattern(self, rank: int) -> Any:
        """Return the first elements of a rank's input: small numbers, so that sums are exact."""
        import numpy

        numbers = (numpy.arange(_PERIOD) + rank) % _PERIOD
        if self.op == "prod" and self.collective in _REDUCING:
            numbers = numpy.where(numbers == 0, 2, 1)
        return numbers.astype(self.dtype)

    def _reduced(self) -> Any:
        import numpy

        rows = [self._pattern(rank) for rank in range(self.comm.size)]
        if self.dtype.kind == "b":
            any_ = {"sum", "max", "bor"}
            folds: dict[str, Any] = {"bxor": numpy.logical_xor}
            fold = folds.get(self.op, numpy.logical_or if self.op in any_ else numpy.logical_and)
            return fold.reduce(rows)
        if self.op in ("sum", "avg", "premul_sum"):  # the default factor of premul_sum is 1
            wide = numpy.sum([row.astype("c16") for row in rows], axis=0)
            wide = wide / (self.comm.size if self.op == "avg" else 1)
            return (wide if self.dtype.kind == "c" else wide.real).astype(self.dtype)
        folds = {
            "prod": numpy.multiply, "min": numpy.minimum, "max": numpy.maximum,
            "band": numpy.bitwise_and, "bor": numpy.bitwise_or, "bxor": numpy.bitwise_xor,
        }  # fmt: skip
        return folds[self.op].reduce(rows)

    @staticmethod
    def _tiled(pattern: Any, count: int) -> Any:
        import numpy

        return numpy.resize(pattern, count)


def _measure(comm: Adapter, case: _Case, options: Options) -> Row:
    case.fill()
    for _ in range(max(1, options.warmup)):
        case.call()
    iterations = options.iterations or _iterations(comm, case, options.seconds)
    batches = 5 if iterations >= 10 else 1
    per_batch = max(1, iterations // batches)
    times = [_time(comm, case.call, per_batch) for _ in range(batches)]
    wrong = -1
    if options.check:
        case.fill()
        case.call()
        wrong = int(_sum(comm, float(case.wrong())))
    mean = _sum(comm, sum(times) / len(times)) / comm.size
    best = _sum(comm, min(times)) / comm.size
    algbw = case.size / mean / 1e9 if mean > 0 else 0.0
    return Row(
        case.collective,
        case.size,
        case.count,
        options.dtype if case.collective != "barrier" else "",
        options.op if case.collective in _REDUCING else "",
        options.root if case.collective in _ROOTED else -1,
        case.mode,
        mean * 1e6,
        best * 1e6,
        per_batch * batches,
        algbw,
        algbw * bus_factor(case.collective, comm.size),
        wrong,
    )


def _time(comm: Adapter, call: Callable[[], None], iterations: int) -> float:
    """Return the mean seconds of one call on this rank."""
    comm.barrier()
    begin = time.perf_counter()
    for _ in range(iterations):
        call()
    return (time.perf_counter() - begin) / iterations


def _iterations(comm: Adapter, case: _Case, seconds: float) -> int:
    """Return how many calls fit into ``seconds``, the same on every rank."""
    once = _sum(comm, _time(comm, case.call, 3)) / comm.size
    return max(1, min(20000, int(seconds / max(once, 1e-7))))


def mean_over_ranks(comm: Adapter, value: float) -> float:
    """Return the mean of ``value`` over the ranks of ``comm``. Collective."""
    return _sum(comm, value) / comm.size


def _sum(comm: Adapter, value: float) -> float:
    import numpy

    total = numpy.array([value], "f8")
    comm.all_reduce(total, "sum", out=total)
    return float(total[0])


# ---- nccl-tests' table -----------------------------------------------------------------------


def header() -> list[str]:
    """Return the lines above the table."""
    side = f"{'time':>9} {'algbw':>7} {'busbw':>7} {'#wrong':>6}"
    unit = f"{'(us)':>9} {'(GB/s)':>7} {'(GB/s)':>7} {'':>6}"
    return [
        f"#{'':57}{'out-of-place':^33}{'in-place':^33}",
        f"# {'size':>11} {'count':>12} {'type':>9} {'redop':>10} {'root':>5}  {side}  {side}",
        f"# {'(B)':>11} {'(elements)':>12} {'':>9} {'':>10} {'':>5}  {unit}  {unit}",
    ]


def line(rows: Sequence[Row]) -> str:
    """Return one line of the table from the rows of one size."""
    first = rows[0]
    sides = {row.mode: row for row in rows}
    return "  ".join(
        [
            f"  {first.size:>11} {first.elements:>12} {first.dtype or 'none':>9} "
            f"{first.op or 'none':>10} {first.root:>5}",
            *(_side(sides.get(mode)) for mode in ("out", "in")),
        ]
    )


def _side(row: Row | None) -> str:
    if row is None:
        return f"{'N/A':>9} {'N/A':>7} {'N/A':>7} {'N/A':>6}"
    wrong = "N/A" if row.wrong < 0 else str(row.wrong)
    return f"{row.time_us:>9.2f} {row.algbw:>7.3f} {row.busbw:>7.3f} {wrong:>6}"


def parse_bytes(text: str) -> int:
    """Return the bytes of ``8``, ``64K``, ``1M``, ``2G`` (powers of 1024)."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = text.strip().upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in ("K", "M", "G") else ""
    try:
        return int(number.removesuffix(unit)) * units[unit]
    except ValueError:
        raise InvalidArgument(f"{text!r} is no size; write one like 8, 64K, 1M or 2G") from None


def sizes_between(smallest: int, largest: int, factor: int) -> list[int]:
    """Return smallest, smallest * factor, ... up to largest."""
    if smallest < 1 or largest < smallest or factor < 2:
        raise InvalidArgument(
            f"bench: sizes from {smallest} to {largest} by a factor of {factor}; give 1 <= min <= "
            "max and a factor of 2 or more"
        )
    sizes = []
    while smallest <= largest:
        sizes.append(smallest)
        smallest *= factor
    return sizes
