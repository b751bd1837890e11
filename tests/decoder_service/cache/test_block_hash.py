"""A block's identity differs wherever its keys and values could."""

from hypothesis import given
from hypothesis import strategies as st

from decoder_service.cache.block_hash import BlockHash, BlockImage, block_hash, root_hash

Block = tuple[tuple[int, ...], tuple[BlockImage, ...]]

images = st.builds(BlockImage, st.binary(max_size=3), st.integers(-3, 3))
blocks = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), st.lists(images, max_size=2).map(tuple)
)
chains = st.tuples(st.binary(max_size=2), st.lists(blocks, max_size=3).map(tuple))


@given(chains, chains)
def test_two_chains_end_alike_only_where_they_are_alike(
    one: tuple[bytes, tuple[Block, ...]], other: tuple[bytes, tuple[Block, ...]]
) -> None:
    assert (end_of(*one) == end_of(*other)) == (one == other)


def test_bytes_cannot_move_from_one_part_to_the_next() -> None:
    root = root_hash(b"")
    ones = (1).to_bytes(4, "little")
    assert block_hash(root, [1, 1], []) != block_hash(root, [1], [BlockImage(ones, 0)])
    assert root_hash(b"a") != root_hash(b"")
    assert len({root_hash(b"ab"), root_hash(b"a", b"b"), root_hash(b"", b"ab"), root_hash(b"b", b"a")}) == 4


def test_identities_have_the_length_of_a_digest() -> None:
    assert {len(root_hash(b"a")), len(block_hash(root_hash(b"a"), [1], []))} == {32}


def end_of(salt: bytes, chain: tuple[Block, ...]) -> BlockHash:
    last = root_hash(salt)
    for token_ids, in_block in chain:
        last = block_hash(last, token_ids, in_block)
    return last
