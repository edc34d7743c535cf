# SPDX-License-Identifier: Apache-2.0
"""Every collective against a reference that each rank computes from all ranks' inputs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks

INTEGERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]
EVERY = INTEGERS + FLOATS + COMPLEX


def part(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return rank's input: small whole numbers, so that sums are exact in any order."""
    values = (torch.arange(count) * 7 + rank * 3) % 3
    if dtype is torch.bool:
        return values > 0
    return (values + 1).to(dtype)


def parts(count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [part(rank, count, dtype) for rank in range(dist.get_world_size())]


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if got.dtype is torch.complex32:
        got, wanted = torch.view_as_real(got), torch.view_as_real(wanted)
    wide = {torch.float8_e4m3fn: torch.float32, torch.float8_e5m2: torch.float32}
    to = wide.get(got.dtype, got.dtype)
    assert torch.equal(got.to(to), wanted.to(to)), f"{got} is not {wanted}"


def reduced(tensors: list[torch.Tensor], op: str) -> torch.Tensor:
    dtype = tensors[0].dtype
    if dtype is torch.bool:
        wide = torch.stack([t.to(torch.int64) for t in tensors])
        either = op in ("SUM", "MAX", "BOR")
        return (wide.sum(0) % 2 if op == "BXOR" else wide.amax(0) if either else wide.amin(0)) > 0
    to = torch.complex128 if dtype.is_complex else torch.float64
    if not dtype.is_floating_point and not dtype.is_complex:
        to = torch.int64
    wide = torch.stack([t.to(to) for t in tensors])
    if op in ("BAND", "BOR", "BXOR"):
        total = wide[0]
        for other in wide[1:]:
            bits = {"BAND": torch.bitwise_and, "BOR": torch.bitwise_or, "BXOR": torch.bitwise_xor}
            total = bits[op](total, other)
        return total.to(dtype)
    functions = {
        "SUM": lambda: wide.sum(0),
        "AVG": lambda: wide.mean(0),
        "PRODUCT": lambda: wide.prod(0),
        "MIN": lambda: wide.amin(0),
        "MAX": lambda: wide.amax(0),
    }
    return functions[op]().to(dtype)


# ---- reductions ----------------------------------------------------------------------------------


def all_reduce(dtype_name: str, op: str) -> None:
    dtype = getattr(torch, dtype_name)
    for count in (0, 1, 5, 1000):
        tensor = part(dist.get_rank(), count, dtype)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
        if count:
            same(tensor, reduced(parts(count, dtype), op))


@pytest.mark.parametrize("dtype", EVERY)
def test_all_reduce_sums_every_type(two: Ranks, dtype: str) -> None:
    two.run(all_reduce, dtype, "SUM")


@pytest.mark.parametrize("op", ["PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_all_reduce_of_integers(three: Ranks, dtype: str, op: str) -> None:
    three.run(all_reduce, dtype, op)


@pytest.mark.parametrize("op", ["PRODUCT", "MIN", "MAX"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_all_reduce_of_floats(three: Ranks, dtype: str, op: str) -> None:
    three.run(all_reduce, dtype, op)


def averages() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.bfloat16):
        tensor = torch.full((6,), float(2 * dist.get_rank())).to(dtype)
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        same(tensor, torch.full((6,), float(dist.get_world_size() - 1)).to(dtype))


def test_all_reduce_averages(three: Ranks) -> None:
    three.run(averages)


def premultiplied() -> None:
    make = dist._make_nccl_premul_sum
    rank, size = dist.get_rank(), dist.get_world_size()
    for factor in (0.5, torch.tensor([0.5])):
        tensor = torch.full((4,), 2.0 * (rank + 1))
        dist.all_reduce(tensor, op=make(factor))
        same(tensor, torch.full((4,), size * (size + 1) / 2))


def test_all_reduce_multiplies_before_it_sums(two: Ranks) -> None:
    two.run(premultiplied)


def sparse_sum() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for value_shape in ((), (2,)):
        count = rank + 1
        values = torch.ones(count, *value_shape)
        tensor = torch.sparse_coo_tensor(torch.arange(count)[None], values, (5, *value_shape))
        dist.all_reduce(tensor)
        wanted = torch.tensor([float(max(size - i, 0)) for i in range(5)])
        same(tensor.to_dense(), wanted if not value_shape else wanted[:, None].expand(5, 2))
    empty = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (3,))
    dist.all_reduce(empty)
    same(empty.to_dense(), torch.zeros(3))


def test_all_reduce_sums_sparse_tensors(three: Ranks) -> None:
    three.run(sparse_sum)


def reduces_to(root: int) -> None:
    tensor = part(dist.get_rank(), 9, torch.float32)
    dist.reduce(tensor, root)
    wanted = (
        reduced(parts(9), "SUM")
        if dist.get_rank() == root
        else part(dist.get_rank(), 9, torch.float32)
    )
    same(tensor, wanted)


@pytest.mark.parametrize("root", [0, 2])
def test_reduce_changes_the_root_only(three: Ranks, root: int) -> None:
    three.run(reduces_to, root)


def reduce_scatter_forms(dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    rank, size = dist.get_rank(), dist.get_world_size()
    wanted = reduced(parts(4 * size, dtype), "SUM")[4 * rank : 4 * rank + 4]
    mine = part(rank, 4 * size, dtype)

    output = torch.empty(4, dtype=dtype)
    dist.reduce_scatter_tensor(output, mine)
    same(output, wanted)

    output = torch.empty(4, dtype=dtype)
    dist.reduce_scatter(output, [piece.clone() for piece in mine.split(4)])
    same(output, wanted)

    in_place = mine.clone()
    dist.reduce_scatter_tensor(in_place[4 * rank : 4 * rank + 4], in_place)
    same(in_place[4 * rank : 4 * rank + 4], wanted)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bfloat16", "bool", "complex64"])
def test_reduce_scatter_in_all_its_forms(three: Ranks, dtype: str) -> None:
    three.run(reduce_scatter_forms, dtype)


def uneven_reduce_scatter() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    pieces = [torch.full((r + 1,), float(rank)) for r in range(size)]
    output = torch.empty(rank + 1)
    dist.reduce_scatter(output, pieces)
    same(output, torch.full((rank + 1,), float(sum(range(size)))))


def test_reduce_scatter_with_different_sizes(three: Ranks) -> None:
    three.run(uneven_reduce_scatter)


# ---- moving data ---------------------------------------------------------------------------------


def broadcasts(dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    for root in range(dist.get_world_size()):
        for count in (0, 1, 70000):
            tensor = part(dist.get_rank(), count, dtype)
            dist.broadcast(tensor, root)
            same(tensor, part(root, count, dtype))


@pytest.mark.parametrize("dtype", [*EVERY, "complex32"])
def test_broadcast_moves_every_type(two: Ranks, dtype: str) -> None:
    two.run(broadcasts, dtype)


def all_gather_forms(dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    rank, size = dist.get_rank(), dist.get_world_size()
    mine, wanted = part(rank, 6, dtype).view(2, 3), parts(6, dtype)

    listed = [torch.empty(2, 3, dtype=dtype) for _ in range(size)]
    dist.all_gather(listed, mine)
    for got, want in zip(listed, wanted, strict=True):
        same(got, want.view(2, 3))

    whole = torch.empty(size * 2, 3, dtype=dtype)
    dist.all_gather(list(whole.chunk(size)), mine)
    same(whole, torch.cat(wanted).view(size * 2, 3))

    single = torch.empty(size * 2, 3, dtype=dtype)
    dist.all_gather_into_tensor(single, mine)
    same(single, whole)

    in_place = torch.zeros(size * 2, 3, dtype=dtype)
    in_place[2 * rank : 2 * rank + 2] = mine
    dist.all_gather_into_tensor(in_place, in_place[2 * rank : 2 * rank + 2])
    same(in_place, whole)


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64", "uint16", "float8_e4m3fn"])
def test_all_gather_in_all_its_forms(three: Ranks, dtype: str) -> None:
    three.run(all_gather_forms, dtype)


def uneven_all_gather() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    listed = [torch.empty(r, 2) for r in range(size)]
    dist.all_gather(listed, torch.full((rank, 2), float(rank)))
    for r, got in enumerate(listed):
        same(got, torch.full((r, 2), float(r)))


def test_all_gather_with_different_sizes(three: Ranks) -> None:
    three.run(uneven_all_gather)


def gathers_and_scatters(root: int) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = part(rank, 5, torch.float64)
    listed = [torch.empty(5, dtype=torch.float64) for _ in range(size)] if rank == root else None
    dist.gather(mine, listed, dst=root)
    if listed is not None:
        for got, want in zip(listed, parts(5, torch.float64), strict=True):
            same(got, want)

    output = torch.empty(5, dtype=torch.float64)
    dist.scatter(
        output, [10 * t for t in parts(5, torch.float64)] if rank == root else None, src=root
    )
    same(output, 10 * mine)


@pytest.mark.parametrize("root", [0, 1, 2])
def test_gather_and_scatter(three: Ranks, root: int) -> None:
    three.run(gathers_and_scatters, root)


def all_to_all_forms() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    wanted = torch.tensor([[float(peer), float(rank)] for peer in range(size)])

    output = torch.empty(size, 2)
    dist.all_to_all_single(output, torch.tensor([[float(rank), float(p)] for p in range(size)]))
    same(output, wanted)

    listed = [torch.empty(2) for _ in range(size)]
    dist.all_to_all(listed, [torch.tensor([float(rank), float(peer)]) for peer in range(size)])
    same(torch.stack(listed), wanted)

    # rank r sends p + 1 rows of its number to rank p
    rows = torch.full((sum(range(1, size + 1)), 3), float(rank))
    output = torch.empty(size * (rank + 1), 3)
    dist.all_to_all_single(output, rows, [rank + 1] * size, list(range(1, size + 1)))
    same(output, torch.arange(float(size)).repeat_interleave(rank + 1)[:, None].expand(-1, 3))

    listed = [torch.empty(peer + rank) for peer in range(size)]
    dist.all_to_all(listed, [torch.full((peer + rank,), float(rank)) for peer in range(size)])
    for peer, got in enumerate(listed):
        same(got, torch.full((peer + rank,), float(peer)))


def test_all_to_all_in_all_its_forms(three: Ranks) -> None:
    three.run(all_to_all_forms)


# ---- layouts and coalescing ----------------------------------------------------------------------


def layouts() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()

    strided = torch.zeros(4, 6)
    strided[:, ::2] = rank + 1.0
    dist.all_reduce(strided[:, ::2])
    same(strided[:, ::2], torch.full((4, 3), size * (size + 1) / 2))
    assert strided[:, 1::2].sum() == 0

    # The same elements in another order on another rank: what counts is the index.
    square = torch.arange(9.0).view(3, 3)
    tensor = square.clone() if rank == 0 else square.t().contiguous().t()
    dist.all_reduce(tensor)
    same(tensor, size * square)

    target = torch.zeros(3, 3).t()
    dist.broadcast(square if rank == 0 else target, 0)
    same(square if rank == 0 else target, square)

    listed = [torch.zeros(3, 2).t() for _ in range(size)]
    dist.all_gather(listed, torch.full((3, 2), float(rank)).t())
    for peer, got in enumerate(listed):
        same(got, torch.full((2, 3), float(peer)))

    leaf = torch.nn.Parameter(torch.full((2, 2), float(rank)).t())
    dist.broadcast(leaf, 1)
    same(leaf.data, torch.ones(2, 2))


def test_layouts_follow_the_indices(two: Ranks) -> None:
    two.run(layouts)


def coalesced() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    total = size * (size + 1) / 2
    small = [torch.full((count,), rank + 1.0) for count in (1, 5, 0, 3)]
    large = [torch.full((count,), rank + 1.0) for count in (100000, 5)]
    mixed = [torch.full((3,), rank + 1.0), torch.full((3,), rank + 1)]
    for tensors in (small, large, mixed):
        with dist._coalescing_manager():
            for tensor in tensors:
                dist.all_reduce(tensor)
        for tensor in tensors:
            same(tensor, torch.full(tensor.shape, total).to(tensor.dtype))

    gathered = [torch.empty(size * count) for count in (2, 3)]
    with dist._coalescing_manager(async_ops=True) as batch:
        for output in gathered:
            dist.all_gather_into_tensor(output, torch.full((output.numel() // size,), float(rank)))
    batch.wait()
    for output in gathered:
        same(output, torch.arange(float(size)).repeat_interleave(output.numel() // size))

    scattered = [torch.empty(count) for count in (2, 3)]
    with dist._coalescing_manager():
        for output in scattered:
            dist.reduce_scatter_tensor(output, torch.ones(size * output.numel()))
    for output in scattered:
        same(output, torch.full(output.shape, float(size)))

    lists = [[torch.empty(2), torch.empty(3)] for _ in range(size)]
    dist.all_gather_coalesced(lists, [torch.full((2,), float(rank)), torch.full((3,), rank + 0.5)])
    for peer, (first, second) in enumerate(lists):
        same(first, torch.full((2,), float(peer)))
        same(second, torch.full((3,), peer + 0.5))


@pytest.mark.filterwarnings("ignore")
def test_coalesced_calls_are_one_work(three: Ranks) -> None:
    three.run(coalesced)


def objects() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "text": "x" * (10 * rank)}
    gathered: list[object] = [None] * size
    dist.all_gather_object(gathered, mine)
    assert [each["rank"] for each in gathered] == list(range(size))

    received = [mine, rank] if rank == 1 else [None, None]
    dist.broadcast_object_list(received, src=1)
    assert received == [{"rank": 1, "text": "x" * 10}, 1]

    got: list[object] = [None]
    dist.scatter_object_list(got, [f"for {r}" for r in range(size)] if rank == 0 else None, src=0)
    assert got == [f"for {rank}"]

    listed: list[object] | None = [None] * size if rank == 0 else None
    dist.gather_object(rank * 2, listed, dst=0)
    assert listed is None or listed == [2 * r for r in range(size)]


def test_object_collectives(three: Ranks) -> None:
    three.run(objects)


def one_rank() -> None:
    tensor = torch.arange(4.0)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    output = [torch.empty(4)]
    dist.all_gather(output, tensor)
    same(output[0], torch.arange(4.0))
    scattered = torch.empty(4)
    dist.reduce_scatter_tensor(scattered, tensor)
    same(scattered, tensor)
    swapped = torch.empty(4)
    dist.all_to_all_single(swapped, tensor)
    same(swapped, tensor)
    dist.barrier()


def test_a_group_of_one(ranks_of: object) -> None:
    ranks_of(1).run(one_rank)  # type: ignore[operator]
