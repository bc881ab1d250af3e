-- Takes lessons into the inbox of a learner, all of a call in one step, each at most once.
-- KEYS: inbox, known, answers, shares, fence, repeat ('' is none)
-- ARGV: fingerprint, fencing token, most lessons in the inbox, most of one tenant, most that are remembered,
--   then per lesson: id, question mark, answer mark, tenant, '1' if it was checked, JSON.
-- Answers {'OK', outcome of each: taken, duplicate, contradiction or tenant_share}, {'REUSED'}, {'STALE', newest token},
--   {'FULL', lessons that wait}: also where a tenant has its share and nobody else waits, since then it may try again
--   later without taking anything from anybody.
-- Of two answers to a question the first stays, but one that was checked replaces another tenant's that was not: its entry
-- in the inbox names that one in `replaces`.
local inbox, known, answers, shares, fence, again = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local fingerprint, token = ARGV[1], tonumber(ARGV[2])
local most, most_of_tenant, remembered = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if again ~= '' then
  local before = redis.call('GET', again)
  if before then
    before = cjson.decode(before)
    if before[1] ~= fingerprint then return { 'REUSED' } end
    return { 'OK', unpack(cjson.decode(before[2])) }
  end
end
local newest = tonumber(redis.call('GET', fence) or '0')
if token > 0 and token < newest then return { 'STALE', string.format('%.0f', newest) } end
local lessons = (#ARGV - 5) / 6
local waiting = redis.call('XLEN', inbox)
if waiting + lessons > most then return { 'FULL', waiting } end
if token > newest then redis.call('SET', fence, ARGV[2]) end

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local outcomes, taken = {}, 0
for i = 1, lessons do
  local at = 5 + (i - 1) * 6
  local id, question, answer, tenant = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local checked, json = ARGV[at + 5] == '1', ARGV[at + 6]
  local before = redis.call('HGET', answers, question)
  before = before and cjson.decode(before)
  local replaces = before and checked and before.unchecked and before.tenant ~= tenant
  if (before and before.answer == answer) or redis.call('ZSCORE', known, 'i' .. id) then
    outcomes[i] = 'duplicate'
  elseif before and not replaces then
    outcomes[i] = 'contradiction'
  elseif tonumber(redis.call('HGET', shares, tenant) or '0') >= most_of_tenant then
    if taken == 0 and tonumber(redis.call('HGET', shares, tenant)) >= waiting then return { 'FULL', waiting } end
    outcomes[i] = 'tenant_share'
  else
    taken = taken + 1
    redis.call('XADD', inbox, '*', 'lesson', json, 'replaces', replaces and before.unchecked or '')
    redis.call('HINCRBY', shares, tenant, 1)
    redis.call('ZADD', known, now, 'i' .. id, now, 'q' .. question)
    redis.call('HSET', answers, question,
      cjson.encode({ answer = answer, tenant = tenant, unchecked = not checked and id or nil }))
    outcomes[i] = 'taken'
  end
end
while redis.call('ZCARD', known) > remembered do
  local oldest = redis.call('ZPOPMIN', known, 100)
  for i = 1, #oldest, 2 do
    if string.sub(oldest[i], 1, 1) == 'q' then redis.call('HDEL', answers, string.sub(oldest[i], 2)) end
  end
end
if again ~= '' then redis.call('SET', again, cjson.encode({ fingerprint, cjson.encode(outcomes) }), 'EX', 86400) end
return { 'OK', unpack(outcomes) }
