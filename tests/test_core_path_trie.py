"""Path patterns: what compiles, what matches, in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.path_trie import MAX_SEGMENTS, PathTrie, compile_pattern

SEGMENTS = st.sampled_from(["a", "b", "c", "{x}", "{y}", "*"])
PATTERNS = st.builds(
    lambda segments, end: "/" + "/".join([*segments, *end]), st.lists(SEGMENTS, max_size=4), st.sampled_from([[], [""]])
).filter(lambda pattern: "//" not in pattern)
PATHS = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=6).map(
    lambda segments: ("/" + "/".join(segments)).encode()
)


def is_wild(segment: bytes) -> bool:
    return segment == b"*" or segment.startswith(b"{")


def naive_rank(pattern: bytes, path: bytes) -> tuple[int, bool, str] | None:
    """How specific a pattern is for a path (less is more); None when it does not match."""
    wanted, given_ = pattern.split(b"/")[1:], path.split(b"/")[1:]
    has_rest = wanted[-1] == b"*"
    if has_rest:
        wanted.pop()
    if len(given_) <= len(wanted) if has_rest else len(given_) != len(wanted):
        return None
    if not all(segment if is_wild(want) else want == segment for want, segment in zip(wanted, given_, strict=False)):
        return None
    kinds = "".join("1" if is_wild(want) else "0" for want in wanted) + "2" * has_rest
    literals = len(kinds) - len(kinds.lstrip("0"))
    return -literals, has_rest, kinds


def naive_find(patterns: list[bytes], path: bytes) -> list[int]:
    ranked = [(rank, index) for index, pattern in enumerate(patterns) if (rank := naive_rank(pattern, path))]
    return [index for _, index in sorted(ranked)]


def trie_of(*patterns: str) -> PathTrie[str]:
    trie: PathTrie[str] = PathTrie()
    for pattern in patterns:
        trie.load(compile_pattern(pattern), pattern)
    return trie


@pytest.mark.parametrize(
    ("pattern", "compiled"),
    [
        pytest.param("/", b"/", id="root"),
        pytest.param("/*", b"/*", id="everything"),
        pytest.param("/api/v1/users/{id}/*", b"/api/v1/users/{id}/*", id="wildcards stay as typed"),
        pytest.param("/api/*/x/", b"/api/*/x/", id="trailing slash"),
        pytest.param("/%61/%7e/%2f", b"/a/~/%2F", id="canonical escapes"),
        pytest.param("/café/Straße", b"/caf%C3%A9/Stra%C3%9Fe", id="other scripts are encoded"),
        pytest.param("/.well-known/x", b"/.well-known/x", id="leading dot"),
        pytest.param("/a|b", b"/a%7Cb", id="what clients must encode"),
        pytest.param("/a%2Ab", b"/a%2Ab", id="an asterisk itself"),
    ],
)
def test_a_pattern_compiles_to_its_canonical_form(pattern: str, compiled: bytes) -> None:
    assert compile_pattern(pattern) == compiled
    assert compile_pattern(compiled.decode()) == compiled


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("", "begin with a slash"),
        ("api/v1", "begin with a slash"),
        ("/a?b=1", "neither a query nor a fragment"),
        ("/a#b", "neither a query nor a fragment"),
        ("/a//b", "empty segment"),
        ("//", "empty segment"),
        ("/a/../b", "dot segment"),
        ("/a/%2e%2e", "dot segment"),
        ("/a/..;x/*", "dot segment"),
        ("/a%2Gb", "percent sign"),
        ("/a\\b", "backslash"),
        ("/a b", "a space"),
        ("/a\n", "percent-encoded"),
        ("/user-{id}", "whole segment"),
        ("/{id", "whole segment"),
        ("/a*/b", "whole segment"),
        ("/**", "whole segment"),
        ("/{}", "whole segment"),
        ("/{a b}", "whole segment"),
        ("/x" * (MAX_SEGMENTS + 1), "at most 64 segments"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_with_a_sentence(pattern: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        compile_pattern(pattern)
    assert str(refusal.value).endswith(".")


@given(st.text(alphabet="/ab.%2eé*{}?;\\ ~", max_size=12).map(lambda text: f"/{text}"))
def test_what_compiles_is_canonical(pattern: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except ValueError:
        return
    assert compile_pattern(compiled.decode("ascii")) == compiled


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/x/*", b"/x/", True),
        ("/x/*", b"/x/a/b", True),
        ("/x/*", b"/x", False),
        ("/x/*", b"/xy", False),
        ("/x/{id}", b"/x/1", True),
        ("/x/{id}", b"/x/", False),
        ("/x/{id}", b"/x/1/", False),
        ("/x/*/y", b"/x/1/y", True),
        ("/x/*/y", b"/x//y", False),
        ("/x/*/*", b"/x/1/", True),
        ("/x/*/*", b"/x/1", False),
        ("/x", b"/x/", False),
        ("/x/", b"/x/", True),
        ("/x/*", b"/x//y", True),
        ("/*", b"/", True),
        ("/{a}", b"/*", True),
        ("/x/a%2Fb", b"/x/a%2Fb", True),
        ("/x/{id}", b"/x/a%2Fb", True),
        ("/x/*", b"/x" + b"/y" * 500, True),
        ("/x/{id}", b"/x" + b"/y" * 500, False),
    ],
)
def test_patterns_match_by_whole_segments(pattern: str, path: bytes, matches: bool) -> None:
    assert trie_of(pattern).find(path) == ([pattern] if matches else [])


def test_the_most_specific_pattern_comes_first() -> None:
    expected = ["/a/b/c", "/a/b/{x}", "/a/b/*", "/a/{x}/c", "/a/{x}/{y}", "/a/{x}/*", "/a/*", "/{x}/b/c", "/*"]
    assert trie_of(*reversed(expected)).find(b"/a/b/c") == expected


def test_patterns_that_differ_in_names_only_stand_together_in_order_of_arrival() -> None:
    trie = trie_of("/a/{x}", "/a/*", "/a/{y}")
    assert trie.groups(b"/a/1") == [("/a/{x}", "/a/{y}"), ("/a/*",)]
    assert trie.best(b"/a/1") == ("/a/{x}", "/a/{y}")
    assert trie.best(b"/b") == ()


def test_the_longest_pattern_that_compiles_is_found() -> None:
    longest = "/x" * (MAX_SEGMENTS - 1) + "/{last}"
    trie = trie_of(longest, "/x" * (MAX_SEGMENTS - 1) + "/*")
    assert len(trie.find(b"/x" * MAX_SEGMENTS)) == 2
    assert len(trie.find(b"/x" * (MAX_SEGMENTS + 1))) == 1


@given(st.lists(PATTERNS, max_size=12), PATHS)
def test_finding_equals_a_scan_of_all_patterns(patterns: list[str], path: bytes) -> None:
    compiled = [compile_pattern(pattern) for pattern in patterns]
    trie: PathTrie[int] = PathTrie()
    for index, pattern in enumerate(compiled):
        trie.load(pattern, index)
    expected = naive_find(compiled, path)
    assert trie.find(path) == expected
    assert list(trie.best(path)) == expected[: len(trie.best(path))]
    assert bool(trie.best(path)) == bool(expected)


Changes = list[tuple[list[bytes], list[int]]]


@given(
    st.lists(
        st.tuples(st.lists(PATTERNS.map(compile_pattern), max_size=4), st.lists(st.integers(0, 20), max_size=4)),
        max_size=6,
    ),
    PATHS,
)
def test_a_changed_trie_equals_one_built_anew_and_leaves_the_former_alone(changes: Changes, path: bytes) -> None:
    trie: PathTrie[int] = PathTrie()
    stand: dict[int, bytes] = {}
    serial = 0
    for puts, places in changes:
        former, found_before = trie, trie.find(path)
        dropped = {index: stand[index] for place in places if (index := place) in stand}
        added = {serial + offset: pattern for offset, pattern in enumerate(puts)}
        serial += len(puts)
        trie = trie.changed(
            [(pattern, index) for index, pattern in added.items()],
            [(pattern, index) for index, pattern in dropped.items()],
        )
        stand = {index: pattern for index, pattern in stand.items() if index not in dropped} | added
        assert former.find(path) == found_before
    indexes = list(stand)
    expected = [indexes[position] for position in naive_find(list(stand.values()), path)]
    assert trie.find(path) == expected
    emptied = trie.changed([], [(pattern, index) for index, pattern in stand.items()])
    assert not emptied
    assert bool(trie) == bool(stand)


def test_dropping_what_was_never_there_changes_nothing() -> None:
    trie = trie_of("/a/b", "/a/*")
    same = trie.changed([], [(b"/a/b", "other"), (b"/x/y", "/a/b"), (b"/a/b/c", "/a/b")])
    assert same.find(b"/a/b") == ["/a/b", "/a/*"]


def test_loading_into_a_changed_trie_leaves_the_former_alone() -> None:
    former = trie_of("/a/b")
    later = former.changed([(b"/a/c", "/a/c")], [])
    later.load(b"/a/b", "again")
    assert former.find(b"/a/b") == ["/a/b"]
    assert later.find(b"/a/b") == ["/a/b", "again"]
