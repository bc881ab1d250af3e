"""Decayed counts of opinions in Redis, for all Routers: a hash, a field for each tenant, alias and domain.

Domains can be the client's words, so the fields of a tenant are bounded: one cannot fill the hash for all others.
"""

from typing import Final

from hivemind.servers.router.skills import DECAY, Key, Opinions

SKILLS: Final = "router:skills"
FIELDS_OF_TENANT_MAX: Final = 500
_FIELDS_MAX: Final = 50_000
LEARN: Final = f"""
local function learn(key, field, weight, surplus)
  local counts = redis.call('HGET', key, field)
  if not counts then
    local tenant, tenants = string.match(field, '^[^\t]*'), key .. ':tenants'
    if redis.call('HLEN', key) >= {_FIELDS_MAX} then return end
    if tonumber(redis.call('HGET', tenants, tenant) or '0') >= {FIELDS_OF_TENANT_MAX} then return end
    redis.call('HINCRBY', tenants, tenant, 1)
  end
  local count, before = string.match(counts or '0 0', '(%S+) (%S+)')
  local decay = {DECAY} ^ weight
  count, before = tonumber(count) * decay + weight, tonumber(before) * decay + weight * surplus
  redis.call('HSET', key, field, string.format('%.6f %.6f', count, before))
end
"""
"""The Lua function by which other scripts add an opinion; see skills.Opinions.after."""


def field_of(tenant: str, alias: str, domain: str) -> str:
    """The field of the hash."""
    return "\t".join((tenant, alias, domain))


def key_of(field: bytes) -> Key:
    """The inverse of `field_of`."""
    tenant, alias, domain = field.decode().split("\t")
    return tenant, alias, domain


def opinions_of(value: bytes) -> Opinions:
    """What a field holds."""
    count, surplus = value.split()
    return Opinions(float(count), float(surplus))
