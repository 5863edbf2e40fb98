"""Reasoning and cards are taken out of the text, however the answer is cut into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.domain.shaping import CARD_SIZE_MAX, Card, Piece, Reasoning, Shaper, Text, parse_card

CARD = '```card\n{"kind":"note","title":"T","body":{"a":[1,null,"x"]}}\n```'
NOTE = Card("note", "T", {"a": [1, None, "x"]})


def joined(pieces: list[Piece]) -> list[Piece]:
    """The same pieces with neighbours of one kind made one."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, Text | Reasoning) and type(last) is type(piece):
            result[-1] = type(piece)(last.text + piece.text)  # type: ignore[union-attr]
        else:
            result.append(piece)
    return result


def shape(*chunks: str) -> list[Piece]:
    shaper = Shaper()
    pieces = [piece for chunk in chunks for piece in shaper.feed(chunk)]
    return joined(pieces + shaper.finish())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", []),
        ("Hello", [Text("Hello")]),
        ("  Hello ", [Text("  Hello ")]),
        (" \n", [Text(" \n")]),
        ("<think>a</think>b", [Reasoning("a"), Text("b")]),
        ("\n<think>\na\n</think>\n\nb\n", [Reasoning("\na\n"), Text("b\n")]),
        ("<thinking>a</thinking>b", [Reasoning("a"), Text("b")]),
        ("a<think>b</think>c", [Text("a"), Reasoning("b"), Text("c")]),
        ("<think>never closed", [Reasoning("never closed")]),
        ("<think>a < b </thin", [Reasoning("a < b </thin")]),
        ("lost</think> tag", [Text("lost tag")]),
        ("<final>Yes.</final>", [Text("Yes.")]),
        ("<think>a</think><final>Yes.</final>", [Reasoning("a"), Text("Yes.")]),
        ("a < b, <thin and <b>", [Text("a < b, <thin and <b>")]),
        ("The tag `<think>` begins", [Text("The tag `<think>` begins")]),
        (
            "```\n<think>x</think>\n```\n<think>y</think>z",
            [Text("```\n<think>x</think>\n```\n"), Reasoning("y"), Text("z")],
        ),
        (f"Here:\n{CARD}\nBye", [Text("Here:\n"), NOTE, Text("Bye")]),
        (CARD, [NOTE]),
        (f"{CARD}\n{CARD}\n", [NOTE, NOTE]),
        (f"no line: {CARD}", [Text(f"no line: {CARD}")]),
        ("```card\nnot json\n```\nx", [Text("```card\nnot json\n```\nx")]),
        ('```card\n{"title":"no kind"}\n```', [Text('```card\n{"title":"no kind"}\n```')]),
        ('```card\n{"kind":"never closed"}', [Text('```card\n{"kind":"never closed"}')]),
        ('```card {"kind":"a"}```', [Text('```card {"kind":"a"}```')]),
        (f"````\n{CARD}\n````\n{CARD}", [Text(f"````\n{CARD}\n````\n"), NOTE]),
        ("```python\nx = 1\n```", [Text("```python\nx = 1\n```")]),
        ("```inline``` and <think>x</think>", [Text("```inline``` and "), Reasoning("x")]),
        ("`", [Text("`")]),
        ("``", [Text("``")]),
        ("<", [Text("<")]),
    ],
)
def test_an_answer_is_taken_apart(answer: str, expected: list[Piece]) -> None:
    assert shape(answer) == expected
    assert shape(*answer) == expected


def test_a_card_beyond_its_size_is_text() -> None:
    answer = '```card\n{"kind":"a","title":"' + "x" * CARD_SIZE_MAX + '"}\n```\nafter <think>y</think>'
    expected = [Text(answer[: answer.index("<think>")]), Reasoning("y")]
    assert shape(answer) == expected
    assert shape(*(answer[i : i + 1000] for i in range(0, len(answer), 1000))) == expected


PARTS = st.sampled_from(
    [
        *("<think>", "</think>", "<thinking>", "</thinking>", "<final>", "</final>", "<", "<thi", "</", ">"),
        *("`", "``", "```", "````", "card", "\n", "\n\n", " ", "word", "ü", "```\n", "```card\n", "```python\n"),
        *('{"kind":"k"}', '{"kind":"k","body":{"n":1}}\n', CARD, f"\n{CARD}\n", "{", "x" * 210),
    ]
)


@given(parts=st.lists(PARTS, max_size=30), data=st.data())
def test_any_chunking_gives_the_same(parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    places = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=20)))
    chunks = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert shape(*chunks) == shape(answer) == shape(*answer)


@given(st.text(alphabet="ab \n.,!ü>/"))
def test_plain_text_passes_as_it_is(text: str) -> None:
    assert "".join(piece.text for piece in shape(*text) if isinstance(piece, Text)) == text


def test_plain_text_is_told_at_once() -> None:
    shaper = Shaper()
    assert shaper.feed("Hel") == [Text("Hel")]
    assert shaper.feed("lo") == [Text("lo")]
    assert shaper.feed(" <b") == [Text(" "), Text("<"), Text("b")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"kind":""}',
        '{"kind":1}',
        '{"kind":"a","title":1}',
        '{"kind":"a","body":[]}',
        '{"kind":"a","body":{"x":NaN}}',
        '{"kind":"a","body":{"x":1e999}}',
        '{"kind":"a","body":{"x":' + "9" * 400 + "}}",
        '{"kind":"a","body":{"x":"\\ud800"}}',
        '{"kind":"a","body":{"x":' + "[" * 50 + "]" * 50 + "}}",
        '{"kind":"a","body":{"x":' + "[" * 100_000,
    ],
)
def test_what_no_client_could_draw_is_no_card(text: str) -> None:
    assert parse_card(text) is None
