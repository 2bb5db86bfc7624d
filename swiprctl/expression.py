"""What a user writes as a condition, read into a tree. Nothing is ever evaluated as code. Pure.

    condition  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | "(" condition ")" | comparison
    comparison = operand { ( ">" | ">=" | "<" | "<=" | "==" | "!=" ) operand }
    operand    = number | label | "top"

A label is a word, or between quotation marks of either kind, with a backslash before a mark or a
backslash in it. `"top"`, `"and"` and `"0.5"` are labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swiprctl.condition import (
    OPERATORS,
    All,
    Any,
    Comparison,
    Condition,
    ConditionError,
    Label,
    Not,
    Number,
    Reached,
    Top,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.condition import Node, Operand

MAX_LENGTH = 1 << 16
"""Characters of an expression."""

MAX_DEPTH = 50
"""Brackets and `not`s inside one another."""

_KEYWORDS = frozenset({"and", "or", "not", "top"})
_INSTEAD = {
    "=": "==",
    "<>": "!=",
    "=>": ">=",
    "=<": "<=",
    "===": "==",
    "&": "and",
    "&&": "and",
    "|": "or",
    "||": "or",
    "!": "not",
}
"""What is written elsewhere, and what stands for it here."""

_TOKEN = re.compile(
    r"""(?x) \s*+ (?:
        (?P<quoted>   "(?:[^"\\]|\\["'\\])*+" | '(?:[^'\\]|\\["'\\])*+' )
      | (?P<symbol>   [()] | [<>=!]++ | &&? | \|\|? )
      | (?P<word>     [^\s()<>=!&|"',;]++ )
      | (?P<strange>  . )
      | (?P<end>      \Z ) )""",
    re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+")


def parse(expression: str) -> Condition:
    """Read an expression.

    Raises:
        ConditionError: it is none; the error says where and what was expected there.
    """
    if len(expression) > MAX_LENGTH:
        raise ConditionError(f"a condition has at most {MAX_LENGTH} characters", expression, 0, 1)
    return Condition(expression, _Parser(expression).whole())


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """`keyword`, `number`, `label`, `symbol` or `end`."""
    text: str
    start: int
    end: int


class _Parser:
    """A recursive descent, one token ahead."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._depth = 0
        self._at = 0
        self._next = self._token()

    def whole(self) -> Node:
        tree = self._condition()
        if self._next.kind != "end":
            if self._next.text == ")":
                raise self._error("this bracket closes none")
            raise self._expected("'and', 'or' or the end")
        return tree

    def _condition(self) -> Node:
        found = [self._conjunction()]
        while self._took("keyword", "or"):
            found.append(self._conjunction())
        return found[0] if len(found) == 1 else Any(tuple(found))

    def _conjunction(self) -> Node:
        found = [self._negation()]
        while self._took("keyword", "and"):
            found.append(self._negation())
        return found[0] if len(found) == 1 else All(tuple(found))

    def _negation(self) -> Node:
        opening = self._next
        negated = self._took("keyword", "not")
        if not negated and not self._took("symbol", "("):
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} brackets and nots in one another", opening)
        inside = self._negation() if negated else self._condition()
        self._depth -= 1
        if negated:
            return Not(inside)
        if not self._took("symbol", ")"):
            if self._next.kind == "end":
                raise self._error("this bracket is not closed", opening)
            raise self._expected("'and', 'or' or ')'")
        return inside

    def _comparison(self) -> Node:
        first = self._next
        operands = [self._operand("a label, a number, 'top', 'not' or '('")]
        operators: list[_Token] = []
        while self._next.kind == "symbol" and self._next.text in OPERATORS:
            operators.append(self._take())
            operands.append(self._operand(f"a label or a number behind {operators[-1].text}"))
        if not operators:
            if isinstance(operands[0], Label):
                return Reached(operands[0])
            raise self._expected(f"a comparison such as '>' behind {first.text}")
        if Top() in operands:
            self._judge_top(operands, operators)
        return Comparison(tuple(operands), tuple(one.text for one in operators))

    def _judge_top(self, operands: list[Operand], operators: list[_Token]) -> None:
        operator = operators[0]
        if operator.text not in ("==", "!="):
            raise self._error("'top' is a label: compare it by == or !=", operator)
        if len(operands) > 2 or not any(isinstance(one, Label) for one in operands):
            raise self._error("'top' is compared with one label, as in top == \"cat\"", operator)

    def _operand(self, expected: str) -> Operand:
        token = self._next
        match token.kind:
            case "number":
                value = float(self._take().text)
                if abs(value) == float("inf"):
                    raise self._error("this number is too large", token)
                return Number(value)
            case "label":
                self._take()
                return Label(token.text, token.start, token.end)
            case "keyword" if token.text == "top":
                self._take()
                return Top()
        raise self._expected(expected)

    def _took(self, kind: str, text: str) -> bool:
        """Take the next token if it is this one."""
        found = self._next.kind == kind and self._next.text == text
        if found:
            self._take()
        return found

    def _take(self) -> _Token:
        taken = self._next
        self._next = self._token()
        return taken

    def _token(self) -> _Token:
        match = _TOKEN.match(self._expression, self._at)
        assert match is not None  # one of the last two always fits
        kind = match.lastgroup or "end"
        text = match[kind]
        start, self._at = match.span(kind)
        token = _Token(kind, text, start, self._at)
        match kind:
            case "quoted":
                return _Token("label", re.sub(r"\\(.)", r"\1", text[1:-1]), start, self._at)
            case "word":
                return _Token(_kind_of_word(text), text, start, self._at)
            case "strange" if text in ("'", '"'):
                raise self._error(
                    f"the label behind this {text} does not end, or has a backslash before"
                    " something else than a quotation mark or a backslash",
                    token,
                )
            case "strange":
                raise self._error(f"a label with {text!r} is put between quotation marks", token)
            case "symbol" if text not in OPERATORS and text not in "()":
                instead = _INSTEAD.get(text)
                told = f"; write {instead}" if instead else ""
                raise self._error(f"there is no {text}{told}", token)
        return token

    def _expected(self, what: str) -> ConditionError:
        token = self._next
        written = self._expression[token.start : token.end]
        found = "the end" if token.kind == "end" else repr(written)
        hint = ""
        if token.kind == "label" and written.lower() in _KEYWORDS:
            hint = f"; write {written.lower()}, in small letters"
        elif token.kind in ("label", "number"):
            hint = "; a label with blanks is put between quotation marks"
        return self._error(f"expected {what}, not {found}{hint}")

    def _error(self, message: str, token: _Token | None = None) -> ConditionError:
        token = token or self._next
        return ConditionError(message, self._expression, token.start, token.end)


def _kind_of_word(text: str) -> str:
    if text in _KEYWORDS:
        return "keyword"
    return "number" if _NUMBER.fullmatch(text) else "label"
