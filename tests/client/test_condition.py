"""Conditions: what is understood, how it is judged, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swiprctl.condition import OPERATORS, ConditionError
from swiprctl.expression import MAX_DEPTH, MAX_LENGTH, parse
from swiprctl.rows import Prediction

pytestmark = pytest.mark.timeout(60)

LABELS = ("cat", "dog", "No Finding", "and", "top", "0.5", 'a"b\\', "katze-groß", "T-shirt/top")
ROW = (0.5, 0.25, 0.125, 0.0625, 0.0, 0.0, 0.0, 0.0, 0.0625)


def answer(
    row: Sequence[float] = ROW,
    labels: Sequence[str] = LABELS,
    thresholds: Sequence[float] | None = None,
    model: str = "m@1",
) -> Prediction:
    made = Prediction(tuple(row), model)
    made.labels = tuple(labels)
    made.thresholds = None if thresholds is None else tuple(thresholds)
    return made


@pytest.mark.parametrize(
    "expression",
    [
        "cat > 0.4",
        "cat>.4",
        "cat >= 5e-1",
        "cat>=.5 and cat<=0.5 and cat==0.5",
        "0.4 < cat",
        "0.2 < cat <= .5 > dog != cat",
        "cat > dog",
        "not dog > cat",
        "not not cat > dog",
        "dog > 1 or cat > 0",
        "dog > 1 and dog > 1 or cat > 0",
        "not (dog > 1 and (dog > 1 or cat > 0))",
        "not dog > 1 and cat > 0",
        'top == "cat"',
        "top == cat",
        "'cat' == top",
        "top != dog",
        '"No Finding" == 0.125',
        "'No Finding'==+0.125",
        '"and" == 0.0625',
        '"top" == 0 and top != "top"',
        '"0.5" == 0',
        r'"a\"b\\" == 0',
        r"""'a"b\\' == 0""",
        "katze-groß < 1",
        "T-shirt/top > -1",
        "(((cat > 0.4)))",
        "\tcat\n>\n0.4 ",
    ],
)
def test_it_is_true(expression: str) -> None:
    assert parse(expression).fulfilled(answer())
    assert not parse(f"not ({expression})").fulfilled(answer())


@pytest.mark.parametrize(
    ("expression", "message", "meant"),
    [
        ("", "expected a label, a number, 'top', 'not' or '(', not the end", ""),
        ("cat >", "expected a label or a number behind >, not the end", ""),
        ("cat > > 1", "expected a label or a number behind >, not '>'", ">"),
        ("cat > 0.5 dog", "expected 'and', 'or' or the end, not 'dog'", "dog"),
        ("No Finding > 1", "a label with blanks is put between quotation marks", "Finding"),
        ("cat > 1 AND dog > 1", "write and, in small letters", "AND"),
        ("(cat > 1", "this bracket is not closed", "("),
        ("(cat > 1 dog", "expected 'and', 'or' or ')', not 'dog'", "dog"),
        ("cat > 1)", "this bracket closes none", ")"),
        ("cat = 1", "there is no =; write ==", "="),
        ("cat > 1 && dog > 1", "there is no &&; write and", "&&"),
        ("cat > 1 | dog > 1", "there is no |; write or", "|"),
        ("! cat > 1", "there is no !; write not", "!"),
        ("cat <=> 1", "there is no <=>", "<=>"),
        ("0.5", "expected a comparison such as '>' behind 0.5, not the end", ""),
        ("top", "expected a comparison such as '>' behind top, not the end", ""),
        ("top > cat", "'top' is a label: compare it by == or !=", ">"),
        ("top == 0.5", "'top' is compared with one label", "=="),
        ("top == top", "'top' is compared with one label", "=="),
        ("cat == top == dog", "'top' is compared with one label", "=="),
        ('"cat > 1', 'the label behind this " does not end', '"'),
        (r'"c\at" > 1', "has a backslash before something else", '"'),
        ("cat, dog > 1", "a label with ',' is put between quotation marks", ","),
        ("cat > 0,5", "a number has a point, as in 0.5", ","),
        ("cat > 1e999", "this number is too large", "1e999"),
    ],
)
def test_it_is_not_understood(expression: str, message: str, meant: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse(expression)
    assert message in str(caught.value)
    assert expression[caught.value.start : caught.value.end] == meant
    told, shown, carets = caught.value.lines()
    assert told == str(caught.value)
    assert shown[carets.index("^") : carets.index("^") + len(meant)] == meant
    assert carets.count("^") == max(1, len(meant))


def test_the_carets_stand_below_the_mistake() -> None:
    def lines(expression: str) -> list[str]:
        with pytest.raises(ConditionError) as caught:
            parse(expression)
        return caught.value.lines()[1:]

    assert lines("cat > and dog") == ["  cat > and dog", "        ^^^"]
    assert lines('"猫" > 1 &\n1') == ['  "猫" > 1 &?1', "           ^"]
    assert lines("\x1b[2J > &") == ["  ?[2J > &", "         ^"]
    for line in lines("cat > 1 and " * 1000 + "cat >> 1" + " and cat > 1" * 1000):
        assert len(line) <= 76


@pytest.mark.parametrize("opening", ["(", "not ", "not ("])
def test_it_is_as_deep_as_it_may_be(opening: str) -> None:
    closing = ")" * opening.count("(")
    depth = MAX_DEPTH // (len(opening.split()) if "not (" in opening else 1)
    assert parse(opening * depth + "cat > 0" + closing * depth)
    with pytest.raises(ConditionError, match="brackets and nots in one another"):
        parse(opening * (depth + 1) + "cat > 0" + closing * (depth + 1))
    with pytest.raises(ConditionError, match="brackets and nots in one another"):
        parse(opening * 10000)


def test_it_is_as_long_as_it_may_be() -> None:
    parts = (MAX_LENGTH + 4) // 12
    expression = " or ".join(["dog > 1."] * parts)
    assert len(expression) <= MAX_LENGTH
    assert not parse(expression).fulfilled(answer())
    with pytest.raises(ConditionError, match="at most"):
        parse("c" * (MAX_LENGTH + 1))


def test_labels_that_the_model_has_not() -> None:
    with pytest.raises(ConditionError) as caught:
        parse('cat > 0 and "sharp" > 0').fulfilled(answer(labels=("cat", "dog"), row=(1, 0)))
    assert str(caught.value) == "m@1 has no label 'sharp'; it has cat, dog"
    assert caught.value.lines()[1:] == ['  cat > 0 and "sharp" > 0', f"{' ' * 14}{'^' * 7}"]
    many = [*(f"class number {n}" for n in range(999)), "golden Retriever"]
    with pytest.raises(ConditionError) as caught:
        parse("retriever > 0").fulfilled(answer(labels=many, row=[0.001] * 1000))
    assert "the nearest are golden Retriever, class number" in str(caught.value)
    assert "'swiprctl model' lists 990 more" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_labels_that_the_model_has_twice() -> None:
    row = answer(labels=("crane", "dog", "crane"), row=(0.25, 0.25, 0.5))
    with pytest.raises(ConditionError) as caught:
        parse("crane > 0").fulfilled(row)
    assert str(caught.value) == ('m@1 has 2 labels \'crane\': write "crane (0)" or "crane (2)"')
    assert parse('"crane (2)" == 0.5 and top == "crane (2)"').fulfilled(row)
    assert not parse('top == "crane (0)"').fulfilled(row)


def test_a_label_by_itself_reaches_its_threshold() -> None:
    row = answer(labels=("a", "b", "c"), row=(0.5, 0.5, math.nan), thresholds=(0.5, 0.75, 0))
    assert parse("a and not b and not c").fulfilled(row)
    with pytest.raises(ConditionError) as caught:
        parse("cat").fulfilled(answer())
    assert "m@1 has no threshold for 'cat'" in str(caught.value)
    assert "'cat > 0.5'" in str(caught.value)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_what_is_no_number_compares_false(operator: str) -> None:
    row = answer(labels=("a", "b"), row=(math.nan, math.nan))
    for expression in (f"a {operator} 0", f"0 {operator} a", f"a {operator} b", f"a {operator} a"):
        assert not parse(expression).fulfilled(row)
    for expression in ("top == a", "top != a", "top == b", "top != b"):
        assert not parse(expression).fulfilled(row)
    assert parse("top == b").fulfilled(answer(labels=("a", "b"), row=(math.nan, -5.0)))


def test_numbers_are_compared_as_they_are_printed() -> None:
    row = answer(labels=("a",), row=(0.699999988079071,))  # 0.7 in float32
    assert parse("a >= 0.7 and a == 0.7 and not a < 0.7").fulfilled(row)
    assert not parse("a").fulfilled(answer(labels=("a",), row=(0.69999998,), thresholds=(0.7,)))


def test_a_label_is_looked_up_in_the_model_that_answers() -> None:
    condition = parse("cat > 0.5")
    assert condition.fulfilled(answer(labels=("cat", "dog"), row=(0.75, 0.25)))
    assert condition.fulfilled(answer(labels=("dog", "cat"), row=(0.25, 0.75), model="m@2"))
    with pytest.raises(ConditionError, match="m@3 has no label 'cat'"):
        condition.fulfilled(answer(labels=("dog", "car"), row=(0.25, 0.75), model="m@3"))
    assert not condition.fulfilled(answer(labels=("cat", "dog"), row=(0.25, 0.75)))
    for number in range(30):  # more models than are kept
        labels = ("cat", "dog") if number % 2 else ("dog", "cat")
        row = answer(labels=labels, row=(0.25, 0.75), model=f"m@{number % 12}")
        assert condition.fulfilled(row) is not bool(number % 2)


# -- against Python

names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8
) | st.sampled_from(["and", "or", "not", "top", "0.5", "a", "b"])
values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.5])


def quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def expressions(draw: st.DrawFn, labels: int) -> tuple[str, str]:
    """An expression with `{n}` for label n, and the same in Python, with `row[n]`."""

    def operand() -> tuple[str, str]:
        if draw(st.booleans()):
            number = str(draw(values))
            return number, number
        index = draw(st.integers(0, labels - 1))
        return f"{{{index}}}", f"row[{index}]"

    def build(depth: int) -> tuple[str, str]:
        kind = draw(st.sampled_from(["compare", "top", "and", "or", "not", "()"]))
        if depth == 0 or kind == "compare":
            ours, pythons = operand()
            for _ in range(draw(st.integers(1, 2))):
                more, more_pythons = operand()
                operator = draw(st.sampled_from(sorted(OPERATORS)))
                gap = draw(st.sampled_from(["", " "]))
                ours += f"{gap}{operator}{gap}{more}"
                pythons += f" {operator} {more_pythons}"
            return ours, pythons
        if kind == "top":
            index = draw(st.integers(0, labels - 1))
            return f"top == {{{index}}}", f"row.index(max(row)) == {index}"
        if kind == "not":
            ours, pythons = build(depth - 1)
            return f"not {ours}", f"not {pythons}"
        if kind == "()":
            ours, pythons = build(depth - 1)
            return f"({ours})", f"({pythons})"
        parts = [build(depth - 1) for _ in range(draw(st.integers(2, 3)))]
        return f" {kind} ".join(one for one, _ in parts), f" {kind} ".join(two for _, two in parts)

    return build(draw(st.integers(0, 4)))


@given(st.data())
def test_python_says_the_same(data: st.DataObject) -> None:
    """`not`, `and`, `or`, brackets and chains bind as they do there, without brackets of ours."""
    labels = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    row = [data.draw(values) for _ in labels]
    ours, pythons = data.draw(expressions(len(labels)))
    condition = parse(ours.format(*map(quoted, labels)))
    wanted = eval(pythons, {"__builtins__": {"max": max}}, {"row": row})
    assert condition.fulfilled(answer(row, labels)) is wanted


@given(st.text(st.sampled_from("ab 0.5<>=!&|()\"'\\andortp,\x1b猫"), max_size=40))
@example("\\")
def test_whatever_is_written_ends_in_a_condition_or_its_error(text: str) -> None:
    found: ConditionError | None = None
    try:
        parse(text).fulfilled(answer(row=(0.5, 0.25), labels=("a", "b")))
    except ConditionError as error:
        found = error
    if found is not None:
        assert 0 <= found.start <= found.end <= len(text)
        assert not set("\n\x1b") & set("".join(found.lines()[1:]))
