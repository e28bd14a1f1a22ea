import pytest

from callgate_server.backends.cedar.source import Source, read_sources
from support.cedar_catalog import VOCABULARY

PERMIT = 'permit(principal, action in Action::"call", resource)'


def read(text: str) -> tuple[Source, ...]:
    return read_sources({"a.cedar": text}, VOCABULARY)


def faults(text: str) -> list[str]:
    with pytest.raises(ValueError, match="cedar:") as caught:
        read(text)
    return str(caught.value).splitlines()


def test_each_policy_has_its_file_line_and_own_words() -> None:
    text = f'// first; not "code\n@id("a")\n{PERMIT};\n\n  @id("b") forbid(principal, action, resource); // end;'
    first, second = read(text)
    assert (first.id, first.file, first.line, first.permits) == ("a", "a.cedar", 2, True)
    assert first.text == f'@id("a")\n{PERMIT};'
    assert (second.id, second.line, second.permits) == ("b", 5, False)


def test_semicolons_in_strings_and_comments_end_nothing() -> None:
    (policy,) = read(
        f'@id("a") {PERMIT} when {{ // x;\n context.arguments has script && context.arguments.script like "*;\\";*" }};'
    )
    assert policy.text.endswith("};")


def test_files_are_read_in_the_order_of_their_names() -> None:
    files = {"b.cedar": f'@id("b") {PERMIT};', "a.cedar": f'@id("a") {PERMIT};'}
    assert [source.id for source in read_sources(files, VOCABULARY)] == ["a", "b"]


def test_nothing_but_comments_is_no_policy() -> None:
    assert read("// nothing\n") == ()


def test_approval_group_is_read() -> None:
    (policy,) = read(f'@id("a") @approval("operators") @description("why") {PERMIT};')
    assert policy.approval == "operators"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # What Cedar's validator finds.
        (f'@id("x") {PERMIT} when {{ resource.rsik > 3 }};', "attribute `rsik` on entity type `Tool` not found"),
        (
            '@id("x") forbid(principal, action == Action::"call:python.run", resource)'
            ' when { context.arguments.cdoe == "x" };',
            "`arguments.cdoe`",
        ),
        (
            f'@id("x") {PERMIT} when {{ context.arguments.code == "x" }};',
            'attribute `arguments.code` in context for Action::"call:',
        ),
        (
            '@id("x") forbid(principal, action == Action::"call:shell.run", resource)'
            ' when { context.arguments.script == "x" };',
            "optional attribute `arguments.script`",
        ),
        ('@id("x") permit(principal, action == Action::"call:shll.run", resource);', "unrecognized action"),
        ('@id("x") permit(principal, action == Action::"call", resource);', "unable to find an applicable action"),
        ('@id("x") permit(principal == Agnet::"a/b", action, resource);', "unrecognized entity type `Agnet`"),
        (f'@id("x") {PERMIT} when {{ resource.effect == Effect::"unsaef" }};', "not declared as a valid eid"),
        (f'@id("x") {PERMIT} when {{ resource.effect == "unsafe" }};', "not compatible"),
        # What it takes in silence.
        (
            f'@id("x") {PERMIT} when {{ context.arguments has scirpt }};',
            "no call that this policy applies to can have `context.arguments.scirpt`",
        ),
        (
            '@id("x") forbid(principal, action == Action::"call:shell.run", resource)'
            ' when { context.arguments has code && context.arguments.code == "x" };',
            "can have `context.arguments.code`",
        ),
        (
            '@id("x") forbid(principal, action == Action::"use", resource) when { context has arguments };',
            "can have `context.arguments`",
        ),
        (f'@id("x") {PERMIT} when {{ context.task has x }};', "can have `context.task.x`"),
        (f'@id("x") {PERMIT} when {{ resource has risk && resource.risk > 1 }};', "`has` is for the context"),
        (f'@id("x") {PERMIT} when {{ {{a: 1}} has b }};', "`has` is for the context"),
        ('@id("x") forbid(principal, action, resource in Namespace::"shel");', 'Namespace::"shel" does not exist'),
        ('@id("x") forbid(principal, action, resource == Tool::"shell.rum");', 'Tool::"shell.rum" does not exist'),
        (
            '@id("x") permit(principal, action == Action::"use", resource == Secret::"webhooks.sign/kee");',
            'Secret::"webhooks.sign/kee" does not exist',
        ),
        *(
            (f'@id("x") forbid(principal, action == Action::"connect", resource == Host::"{host}");', "never asked for")
            for host in ("API.example.com", "api.example.com:443", "https://a.example", "*.example.com", "127.1")
        ),
        (
            '@id("x") permit(principal, action == Action::"connect", resource) when { resource.host == "a" };',
            "attribute `host` on entity type `Host` not found",
        ),
        (
            '@id("x") permit(principal, action == Action::"connect", resource) when { context.method == "GET" };',
            "optional attribute `method`",
        ),
        (
            '@id("x") forbid(principal, action == Action::"connect", resource) when { context has methd };',
            "can have `context.methd`",
        ),
        (
            '@id("x") permit(principal, action == Action::"connect", resource)'
            ' when { context.tool == Tool::"web.fecth" };',
            'Tool::"web.fecth" does not exist',
        ),
        (f'@id("x") @aproval("ops") {PERMIT};', "unknown annotation @aproval"),
        ('@id("x") @approval("ops") forbid(principal, action, resource);', "@approval stands on a forbid"),
        (f'@id("x") @approval("") {PERMIT};', "@approval needs the name of a group"),
        (f"{PERMIT};", "every policy needs an annotation"),
        (f"@id {PERMIT};", "every policy needs an annotation"),
        (f'@id("Not `fit`") {PERMIT};', "every policy needs an annotation"),
        ('@id("x") permit(principal == ?principal, action, resource);', "templates are not supported"),
        ('@id("x") permit(principal action, resource);', "not a Cedar policy"),
        (f'@id("x") {PERMIT}', "not a Cedar policy"),
        (f'@id("x") {PERMIT} when {{ "unclosed }};', "not a Cedar policy"),
        (f'@id("x") {PERMIT} when {{ {"!" * 2000}true }};', "not a Cedar policy"),
    ],
)
def test_mistake_is_refused_with_file_line_and_reason(text: str, fault: str) -> None:
    found = faults("\n\n" + text)
    assert any(fault in line for line in found), found
    assert all(line.startswith("a.cedar:3: ") for line in found)


def test_repeated_id_names_the_first_use() -> None:
    files = {"a.cedar": f'@id("x") {PERMIT};', "b.cedar": f'\n@id("x") {PERMIT};'}
    with pytest.raises(ValueError, match=r"^b\.cedar:2: policy `x`: the id is taken by a\.cedar:1$"):
        read_sources(files, VOCABULARY)


def test_every_fault_is_reported_at_once() -> None:
    found = faults(f'@id("a") {PERMIT} when {{ resource.rsik > 1 }};\n{PERMIT};\n@id("c") permit(;\n@id("d") {PERMIT};')
    assert [line.split(": ")[0] for line in found] == ["a.cedar:1", "a.cedar:2", "a.cedar:3"]
    assert "policy `a`" in found[0]


def test_missing_argument_of_other_tools_is_fine_behind_has() -> None:
    (policy,) = read(f'@id("x") {PERMIT} when {{ context.arguments has code && context.arguments.code == "x" }};')
    assert policy.id == "x"
