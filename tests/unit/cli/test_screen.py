"""An answer on a terminal."""

import io

from retinue_cli.screen import Answer, rows


def shown(*texts: str, size: tuple[int, int] = (10, 5)) -> str:
    out = io.StringIO()
    answer = Answer(out, size)
    for text in texts:
        answer.show(text)
    answer.close()
    return out.getvalue()


def test_only_what_is_new_is_written() -> None:
    assert shown("Hel", "Hello", "Hello") == "Hello\n"


def test_what_is_taken_back_is_erased() -> None:
    assert shown("Hello", "Hey") == "Hello\r\x1b[JHey\n"


def test_all_rows_of_what_is_taken_back_are_erased() -> None:
    assert shown("0123456789ab\ncd", "x") == "0123456789ab\ncd\r\x1b[2A\x1b[Jx\n"


def test_what_has_left_the_screen_is_told_again() -> None:
    assert shown("a\n" * 9, "b").endswith("\n(once more, from the beginning)\nb\n")


def test_wide_characters_take_two_cells() -> None:
    assert rows("你好吗你好吗", 10) == 2
    assert rows("hello", 10) == 1
    assert rows("", 10) == 1
