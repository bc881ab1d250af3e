-- Keys: queue:body, :attempts, :values and :tenants (hashes by id), queue:all (what waits, by value), queue:ready (what may be taken
-- now, by value), queue:later (what may not, by the time it may), queue:leases (by the time they end), queue:of:TENANT
-- (what waits of a tenant, by value), queue:seen:HASH, queue:dropped. An id is 14 digits of Redis' milliseconds and the
-- hash: among equal values the smaller id is the older one.
local time = redis.call('TIME')
local now_ms = math.floor(tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000) + tonumber(ARGV[1])
local P = 'arbiter:queue:'

local function num(n) return string.format('%.0f', n) end

local function tenant_of(id) return redis.call('HGET', P .. 'tenants', id) or '' end

local function wait_again(id, due_ms)
  local value = redis.call('HGET', P .. 'values', id)
  redis.call('ZREM', P .. 'leases', id)
  redis.call('ZADD', P .. 'all', value, id)
  redis.call('ZADD', P .. 'of:' .. tenant_of(id), value, id)
  if due_ms > now_ms then
    redis.call('ZADD', P .. 'later', num(due_ms), id)
  else
    redis.call('ZADD', P .. 'ready', value, id)
  end
end

local function no_longer_waits(id)
  redis.call('ZREM', P .. 'all', id)
  redis.call('ZREM', P .. 'ready', id)
  redis.call('ZREM', P .. 'later', id)
  redis.call('ZREM', P .. 'of:' .. tenant_of(id), id)
end

local function forget(id)
  no_longer_waits(id)
  redis.call('ZREM', P .. 'leases', id)
  for _, name in ipairs({ 'body', 'attempts', 'values', 'tenants' }) do redis.call('HDEL', P .. name, id) end
end

-- The attempt fences off a worker whose lease has ended: somebody else may have the candidate now.
local function has_lease(id, attempt)
  return redis.call('ZSCORE', P .. 'leases', id) and redis.call('HGET', P .. 'attempts', id) == attempt
end
