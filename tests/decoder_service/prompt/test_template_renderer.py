import pytest

from decoder_service.prompt.template_renderer import TemplateRenderer

CHAT = [{"role": "user", "content": " hi\n"}]


def render(source: str) -> str:
    return TemplateRenderer(source, {"bos_token": "<s>"}).render(CHAT, num_characters=4)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] | trim }}{{ messages[0].content }}", "<s>hi hi\n"),
        ("{% for m in messages %}\n    {% if m.role == 'user' %}\nx\n    {% endif %}\n{% endfor %}", "x\n"),
        ("{% set ns = namespace(n=1) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "37"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('a') }}", "aa"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": " hi\\n"}]'),
        ("{{ '<é>' | tojson }}{{ 3 * 4 }}{{ 7 % 2 }}", '"<é>"121'),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ strftime_now('%Y') | length }}", "TrueTrue4"),
    ],
)
def test_templates_have_what_transformers_gives_them(source: str, expected: str) -> None:
    assert render(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ bos_token.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ missing.attribute }}",
    ],
)
def test_templates_can_touch_nothing(source: str) -> None:
    with pytest.raises(ValueError, match="refused the chat"):
        render(source)
    assert CHAT == [{"role": "user", "content": " hi\n"}]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% for i in range(999) %}{% for j in range(999) if false %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% for i in range(99999) %}" + "a" * 99 + "{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 10 ** 10000000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
    ],
)
def test_templates_cannot_run_for_ever_or_make_much_of_little(source: str) -> None:
    with pytest.raises(ValueError, match="refused the chat"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for", "{{ 1 | center(9) }}", "{{ 1 | format }}", "{{ x | nothing }}", "{{" + "(" * 9**5]
)
def test_what_is_no_template_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(ValueError, match="is not a Jinja template"):
        TemplateRenderer(source, {})


def test_a_long_chat_has_steps_enough() -> None:
    source = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    chat = [{"role": "user", "content": [{"text": "a"}] * 9}] * 9000
    assert TemplateRenderer(source, {}).render(chat, num_characters=81_000) == "a" * 81_000
