-- Puts one change of a role in force, all of it or nothing.
-- ARGV: role, expected revision, role as JSON, champion, reign, split, event as JSON without its sequence, idempotency key or
--   '', fingerprint, answer as JSON, fencing token, adapter id or '', adapter as JSON without its order, digest, then pairs of
--   adapter id and mark ('' takes it away).
-- Answers {'OK', revision}, {'CONFLICT'}, {'REUSED'}, {'REPEATED', answer}, {'FENCED', newest token} or {'KNOWN', adapter id}.
--
-- adapters:revision              grows with every change
-- adapters:roles                 role -> JSON; adapters:reign:<role> holds champion, reign and split for record.lua
-- adapters:all                   adapter id -> JSON; adapters:marks: adapter id -> RETIRED or REJECTED
-- adapters:order[:<role>]        adapter ids by the order of registration; adapters:digests: role|digest -> adapter id
-- adapters:events[:<role>]       streams; the id is the sequence. Never trimmed.
-- adapters:repeat:<key>          what a call with this idempotency key was answered, for 24 hours
local role, expected, fingerprint = ARGV[1], ARGV[2], ARGV[9]
local repeat_key = ARGV[8] ~= '' and 'adapters:repeat:' .. ARGV[8] or nil
if repeat_key then
  local known = redis.call('HMGET', repeat_key, 'fingerprint', 'answer')
  if known[1] then
    if known[1] ~= fingerprint then return { 'REUSED' } end
    return { 'REPEATED', known[2] }
  end
end
local token = tonumber(ARGV[11])
if token > 0 then
  local newest = tonumber(redis.call('GET', 'adapters:fence') or '0')
  if token < newest then return { 'FENCED', tostring(newest) } end
  redis.call('SET', 'adapters:fence', ARGV[11])
end
local function remember(answer)
  if not repeat_key then return end
  redis.call('HSET', repeat_key, 'fingerprint', fingerprint, 'answer', answer)
  redis.call('EXPIRE', repeat_key, 86400)
end
local id = ARGV[12]
if id ~= '' then
  local known = redis.call('HGET', 'adapters:digests', role .. '|' .. ARGV[14])
  if known then return { 'KNOWN', known } end
end
local old = redis.call('HGET', 'adapters:roles', role)
local revision = old and string.format('%.0f', cjson.decode(old).revision) or '0'
if revision ~= expected then return { 'CONFLICT' } end
redis.call('HSET', 'adapters:roles', role, ARGV[3])
redis.call('HSET', 'adapters:reign:' .. role, 'champion', ARGV[4], 'reign', ARGV[5], 'split', ARGV[6])
if id ~= '' then
  local order = redis.call('INCR', 'adapters:orders')
  redis.call('HSET', 'adapters:all', id, string.sub(ARGV[13], 1, -2) .. ',"order":' .. order .. '}')
  redis.call('HSET', 'adapters:digests', role .. '|' .. ARGV[14], id)
  redis.call('ZADD', 'adapters:order', order, id)
  redis.call('ZADD', 'adapters:order:' .. role, order, id)
end
for i = 15, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', 'adapters:marks', ARGV[i])
  else
    redis.call('HSET', 'adapters:marks', ARGV[i], ARGV[i + 1])
  end
end
local sequence = redis.call('INCR', 'adapters:sequence')
redis.call('XADD', 'adapters:events', sequence .. '-0', 'event', ARGV[7])
redis.call('XADD', 'adapters:events:' .. role, sequence .. '-0', 'event', ARGV[7])
remember(ARGV[10])
return { 'OK', tostring(redis.call('INCR', 'adapters:revision')) }
