"""The walk from header to header (RFC 6455 section 5): however bytes are split, the same of them passes."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.websocket_frames import FrameError, FrameWalker, close_frame
from tests.websocket_peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, frame, read_frame

LIMIT = 1000
many = settings(max_examples=400, deadline=None)


@dataclass
class Made:
    """A frame of some stream, valid there or not."""

    opcode: int
    size: int
    final: bool
    reserved: int
    masked: bool

    def wire(self) -> bytes:
        payload = bytes(number & 255 for number in range(self.size))
        return frame(self.opcode, payload, final=self.final, masked=self.masked, reserved=self.reserved)


mostly = st.sampled_from([True] * 12 + [False])
frames = st.builds(
    Made,
    st.sampled_from([TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG, TEXT, CLOSE, 3, 11]),
    st.sampled_from([0, 1, 2, 5, 125, 126, 127, 400, 999, 1000, 1001, 70_000]),
    mostly | st.booleans(),
    st.sampled_from([0] * 10 + [4, 4, 2, 1]),
    mostly,
)
streams = st.lists(frames, max_size=8)
cuts = st.lists(st.integers(0, 80_000), max_size=10)


def walked(data: bytes, cuts: list[int], *, may_compress: bool) -> tuple[bytes, int, bool]:
    """What passed, the code of the error (0: none), and whether a Close was the last."""
    walker = FrameWalker(is_masked=True, may_compress=may_compress, limit=LIMIT)
    passed, start = b"", 0
    for end in [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]:
        try:
            passed += walker.take(data[start:end])
        except FrameError as error:
            return passed + error.valid, error.code, walker.has_closed
        start = end
    return passed, 0, walker.has_closed


def expected(stream: list[Made], *, may_compress: bool) -> tuple[bytes, int, bool]:
    """The rules once more, frame by frame, in the words of section 5."""
    passed, message = b"", -1
    for each in stream:
        is_control = each.opcode >= 8
        if is_control:
            is_bad = each.opcode > PONG or each.size > 125 or not each.final or each.reserved or not each.masked
            is_bad = is_bad or (each.opcode == CLOSE and each.size == 1)
        else:
            is_bad = each.opcode > BINARY or not each.masked or (each.opcode == CONTINUATION) != (message >= 0)
            may_be_compressed = may_compress and each.opcode != CONTINUATION
            is_bad = is_bad or each.reserved not in ((0, 4) if may_be_compressed else (0,))
        if is_bad:
            return passed, 1002, False
        if not is_control:
            total = max(message, 0) + each.size
            if total > LIMIT:
                return passed, 1009, False
            message = -1 if each.final else total
        passed += each.wire()
        if each.opcode == CLOSE:
            return passed, 0, True
    return passed, 0, False


def masks_aside(data: bytes) -> list[Frame]:
    """Frames, since masks are random."""
    rest, found = data, []

    def read(size: int) -> bytes:
        nonlocal rest
        piece, rest = rest[:size], rest[size:]
        assert len(piece) == size, "it ends within a frame"
        return piece

    while rest:
        found.append(read_frame(read))
    return found


@many
@given(streams, cuts, st.booleans())
def test_what_passes_is_what_the_rules_allow_however_it_is_split(
    stream: list[Made], cuts: list[int], may_compress: bool
) -> None:
    data = b"".join(each.wire() for each in stream)
    passed, code, has_closed = walked(data, cuts, may_compress=may_compress)
    assert data.startswith(passed)
    rightly, expected_code, expected_close = expected(stream, may_compress=may_compress)
    assert (code, has_closed) == (expected_code, expected_close)
    assert masks_aside(passed) == masks_aside(rightly)


@given(st.binary(max_size=300), cuts)
def test_any_bytes_are_walked_alike_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    whole = walked(data, [], may_compress=False)
    split = walked(data, cuts, may_compress=False)
    assert split == whole


def test_our_own_close_is_a_frame_that_either_end_takes() -> None:
    for is_masked in (True, False):
        data = close_frame(1008, "access was revoked", is_masked=is_masked)
        (got,) = masks_aside(data)
        assert (got.code, got.payload[2:], got.is_masked) == (1008, b"access was revoked", is_masked)
        walker = FrameWalker(is_masked=is_masked, may_compress=False, limit=LIMIT)
        assert walker.take(data) == data
        assert walker.has_closed
