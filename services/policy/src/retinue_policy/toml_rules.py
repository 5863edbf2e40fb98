"""Rules for tools as an operator writes them, in TOML; docs/policy.md says what may stand there."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec

from retinue_policy.domain.tools.catalogue import read_entries, read_entry
from retinue_policy.domain.tools.layers import Layer, Section
from retinue_policy.domain.tools.manners import EXPIRE_MAX_S, EXPIRE_S, Ask, Manner, Security
from retinue_policy.domain.tools.patterns import check_pattern
from retinue_policy.domain.tools.ruleset import ISOLATIONS, Group, Profile, Ruleset
from retinue_policy.operations.rulebook import BadRulesError

LIST_LENGTH_MAX = 500
"""Entries of one list."""

PORT_MAX = 65_535

_HOST_AND_PORT = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})")

Texts = Annotated[list[str], msgspec.Meta(max_length=LIST_LENGTH_MAX)]
Isolation = Literal["namespace", "gvisor", "microvm"]


class _Manner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    security: Security
    ask: Ask = Ask.OFF
    expire_s: Annotated[int, msgspec.Meta(ge=1, le=EXPIRE_MAX_S)] = EXPIRE_S
    allow: Texts = []


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: Texts | None = None
    deny: Texts = []
    security: dict[str, _Manner] = {}
    egress: Texts | None = None
    isolation: Isolation | None = None


class _Profile(_Section, frozen=True, forbid_unknown_fields=True):
    provider: dict[str, _Section] = {}


class _Owner(_Section, frozen=True, forbid_unknown_fields=True):
    profile: str = ""


class _Group(_Section, frozen=True, forbid_unknown_fields=True):
    kinds: Texts = []
    runtimes: Texts = []
    principals: Texts = []


class _Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A section for what is in a box already, or is chosen by the box."""

    allow: Texts | None = None
    deny: Texts = []
    security: dict[str, _Manner] = {}


class _Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profile: str
    isolation: Isolation = "namespace"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    defaults: _Defaults
    profile: dict[str, _Profile]
    everybody: _Section = msgspec.field(name="global", default_factory=_Section)
    provider: dict[str, _Section] = {}
    plan: dict[str, _Owner] = {}
    tenant: dict[str, _Owner] = {}
    agent: dict[str, _Section] = {}
    group: dict[str, _Group] = {}
    sandbox: dict[Isolation, _Inner] = {}
    subagent: _Inner | None = None


def parse(text: str) -> Ruleset:
    """Read rules. Raises BadRulesError."""
    try:
        read = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise BadRulesError(f"tools.toml: {error}") from None
    for name in (read.defaults.profile, *(each.profile for each in (*read.plan.values(), *read.tenant.values()))):
        if name and name not in read.profile:
            raise BadRulesError(f"tools.toml: there is no profile {name!r}")
    return Ruleset(
        default_profile=read.defaults.profile,
        profiles={
            name: Profile(
                _section(Layer.PROFILE, f"profile.{name}", each),
                _sections(Layer.PROFILE_PROVIDER, f"profile.{name}.provider", each.provider.items()),
            )
            for name, each in read.profile.items()
        },
        everybody=_section(Layer.GLOBAL, "global", read.everybody, read.defaults.isolation),
        providers=_sections(Layer.PROVIDER, "provider", read.provider.items()),
        plans=_sections(Layer.GLOBAL, "plan", read.plan.items()),
        tenants=_sections(Layer.GLOBAL, "tenant", read.tenant.items()),
        agents=_sections(Layer.AGENT, "agent", read.agent.items()),
        groups=[
            Group(
                _section(Layer.GROUP, f"group.{name}", each),
                tuple(each.kinds),
                tuple(each.runtimes),
                tuple(each.principals),
            )
            for name, each in read.group.items()
        ],
        sandboxes=_sections(Layer.SANDBOX, "sandbox", read.sandbox.items()),
        subagent=_section(Layer.SUBAGENT, "subagent", read.subagent) if read.subagent else None,
        plan_profiles={name: each.profile for name, each in read.plan.items() if each.profile},
        tenant_profiles={name: each.profile for name, each in read.tenant.items() if each.profile},
    )


def _sections(layer: Layer, kind: str, read: Iterable[tuple[str, _Section | _Inner]]) -> dict[str, Section]:
    return {name: _section(layer, f"{kind}.{name}", each) for name, each in read}


def _section(layer: Layer, name: str, read: _Section | _Inner, isolation: str = "") -> Section:
    """Make a section; a wall of its own counts if it is stronger than the one that is given."""
    allow, unknown = read_entries(read.allow or ())
    deny, strange = read_entries(read.deny)
    manners, odd = _manners(name, read.security)
    egress = None
    if isinstance(read, _Section):
        isolation = max(isolation, read.isolation or "", key=("", *ISOLATIONS).index)
        egress = _egress(name, read.egress)
    return Section(
        layer=layer,
        name=name,
        allow=None if read.allow is None else allow,
        deny=deny,
        manners=manners,
        egress=egress,
        isolation=isolation,
        unknown=(*unknown, *strange, *odd),
    )


def _manners(name: str, read: Mapping[str, _Manner]) -> tuple[tuple[Manner, ...], list[str]]:
    found, unknown = [], []
    for text, each in read.items():
        for pattern in each.allow:
            if trouble := check_pattern(pattern):
                raise BadRulesError(f"tools.toml: {name}.security.{text}.allow: {pattern!r} {trouble}")
        entry = read_entry(text)
        if entry is None:
            unknown.append(text)
            continue
        rule = f"{name}.security: {text}"
        found.append(Manner(rule, entry, each.security, each.ask, each.expire_s, tuple(each.allow)))
    return tuple(found), unknown


def _egress(name: str, read: list[str] | None) -> frozenset[str] | None:
    for text in read or ():
        found = _HOST_AND_PORT.fullmatch(text)
        if found is None or int(found[2]) > PORT_MAX:
            raise BadRulesError(f'tools.toml: {name}.egress: {text!r} must be "host:port", in lower case')
    return None if read is None else frozenset(read)
