"""The filter language, as the service documents it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardctl.broker.errors import InvalidArgumentError
from shardctl.broker.filter import FilterSyntaxError, compile_filter


@pytest.mark.parametrize(
    ("text", "attributes", "passes"),
    [
        pytest.param("", {}, True, id="empty passes everything"),
        pytest.param("attributes:a", {"a": ""}, True, id="present though empty"),
        pytest.param("attributes:a", {"A": "1"}, False, id="keys are case-sensitive"),
        pytest.param('attributes.a = "x"', {"a": "x"}, True, id="equal"),
        pytest.param('attributes.a="x"', {"a": "X"}, False, id="values are case-sensitive"),
        pytest.param('attributes.a = "x"', {}, False, id="equal, absent"),
        pytest.param('attributes.a != "x"', {}, True, id="unequal, absent"),
        pytest.param('attributes.a != "x"', {"a": "x"}, False, id="unequal"),
        pytest.param('hasPrefix(attributes.a, "01")', {"a": "0110"}, True, id="prefix"),
        pytest.param('hasPrefix(attributes.a,"01")', {"a": "10"}, False, id="other prefix"),
        pytest.param('hasPrefix(attributes.a, "")', {}, False, id="empty prefix, absent"),
        pytest.param("NOT attributes:a", {}, True, id="not"),
        pytest.param("-attributes:a", {"a": "1"}, False, id="minus is not"),
        pytest.param("NOT NOT attributes:a", {"a": ""}, True, id="not not"),
        pytest.param("NOT attributes:a AND attributes:b", {"b": ""}, True, id="not binds tightest"),
        pytest.param("NOT attributes:a AND attributes:b", {}, False, id="not doesn't reach past AND"),
        pytest.param("NOT (attributes:a OR attributes:b)", {"c": ""}, True, id="not of a group"),
        pytest.param("attributes:a AND attributes:b AND attributes:c", {"a": "", "b": ""}, False, id="and"),
        pytest.param("attributes:a OR attributes:b OR attributes:c", {"c": ""}, True, id="or"),
        pytest.param("attributes:a AND (attributes:b OR attributes:c)", {"a": "", "c": ""}, True, id="mixed, grouped"),
        pytest.param('attributes:"iana.org/language_tag"', {"iana.org/language_tag": "en"}, True, id="quoted key"),
        pytest.param('attributes."a b" = "x"', {"a b": "x"}, True, id="quoted key, compared"),
        pytest.param("attributes:ce-type", {"ce-type": ""}, True, id="dash in a key"),
        pytest.param("attributes:1a", {"1a": ""}, True, id="digit first"),
        pytest.param(r'attributes.a = "\"\\\x41\u00e9\101"', {"a": '"\\A\u00e9A'}, True, id="escapes"),
        pytest.param('attributes."AND" = "OR"', {"AND": "OR"}, True, id="operators as strings"),
        pytest.param('attributes.a="("OR attributes:b', {"b": ""}, True, id="no space after a string"),
    ],
)
def test_what_passes(text, attributes, passes):
    assert compile_filter(text)(attributes) is passes


@pytest.mark.parametrize(
    ("text", "position"),
    [
        pytest.param("attributes:a AND attributes:b OR attributes:c", 30, id="AND and OR mixed"),
        pytest.param("attributes:a OR attributes:b AND attributes:c", 29, id="OR and AND mixed"),
        pytest.param("attributes:a and attributes:b", 13, id="operator not in capitals"),
        pytest.param("attributes:a attributes:b", 13, id="no operator"),
        pytest.param("attributes:a AND", 16, id="nothing after AND"),
        pytest.param("attributes.a = x", 15, id="bare value"),
        pytest.param("attributes.a = 'x'", 15, id="single quotes"),
        pytest.param('attributes.a == "x"', 14, id="double equals"),
        pytest.param('"x" = attributes.a', 0, id="value on the left"),
        pytest.param('attributes.a > "x"', 13, id="other comparison"),
        pytest.param('hasPrefix(attributes:a, "x")', 20, id="prefix of presence"),
        pytest.param('hasprefix(attributes.a, "x")', 0, id="function's case"),
        pytest.param('hasSuffix(attributes.a, "x")', 0, id="no such function"),
        pytest.param('attributes.a.b = "x"', 12, id="dots in a bare key"),
        pytest.param("(attributes:a", 13, id="open parenthesis"),
        pytest.param("attributes:a)", 12, id="closing parenthesis"),
        pytest.param('attributes.a = "x', 15, id="open string"),
        pytest.param(r'attributes.a = "x\q"', 17, id="unknown escape"),
        pytest.param("messageId:a", 0, id="not an attribute"),
        pytest.param("attributes:é", 11, id="letters outside ASCII, unquoted"),
        pytest.param("   ", 3, id="blank"),
    ],
)
def test_syntax_errors_name_the_position(text, position):
    with pytest.raises(FilterSyntaxError, match=f"position {position}") as caught:
        compile_filter(text)
    assert caught.value.position == position


def test_the_limit_is_256_bytes_not_characters():
    fits = 'attributes.a = "' + "é" * 119 + '"'
    assert len(fits.encode()) == 255
    compile_filter(fits)
    compile_filter(fits[:-1] + 'x"')
    with pytest.raises(InvalidArgumentError, match="257 bytes"):
        compile_filter(fits[:-1] + 'xx"')


_TESTS = st.builds(
    lambda key, value, kind: {
        "present": (f"attributes:{key}", lambda a: key in a),
        "equal": (f'attributes.{key} = "{value}"', lambda a: a.get(key) == value),
        "unequal": (f'attributes.{key} != "{value}"', lambda a: a.get(key) != value),
        "prefix": (f'hasPrefix(attributes.{key}, "{value}")', lambda a: key in a and a[key].startswith(value)),
    }[kind],
    st.sampled_from("ab"),
    st.sampled_from(["", "0", "01"]),
    st.sampled_from(["present", "equal", "unequal", "prefix"]),
)
_EXPRESSIONS = st.recursive(
    _TESTS,
    lambda inner: st.one_of(
        inner.map(lambda inner_case: (f"NOT ({inner_case[0]})", lambda a: not inner_case[1](a))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) AND ({p[1][0]})", lambda a: p[0][1](a) and p[1][1](a))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) OR ({p[1][0]})", lambda a: p[0][1](a) or p[1][1](a))),
    ),
    max_leaves=4,
).filter(lambda pair: len(pair[0]) <= 256)


@pytest.mark.slow
@given(_EXPRESSIONS, st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "0", "01", "011", "1"])))
def test_any_expression_means_what_its_parts_mean(expression, attributes):
    text, expected = expression
    assert compile_filter(text)(attributes) is expected(attributes)
