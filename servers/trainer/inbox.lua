-- Takes lessons into the inbox of a learner, all of a call in one step, each at most once.
-- KEYS: inbox, known, answers, shares, fence, repeat ('' is none), trust, distrusted, compared
-- ARGV: fingerprint, fencing token, most lessons in the inbox, most of one tenant, most that are remembered, how often a
--   tenant must be contradicted to be distrusted (0: however often, it is not),
--   then per lesson: id, question mark, answer mark, tenant, claims (JSON, a list), '1' if it was checked, JSON.
-- Answers {'OK', outcome of each: taken, duplicate, contradiction, distrusted or tenant_share}, {'REUSED'}, {'STALE', newest
--   token}, {'FULL', lessons that wait}: also where a tenant has its share and nobody else waits, since then it may try again
--   later without taking anything from anybody.
-- Of two answers to a question the first stays, but one that was checked replaces another tenant's that was not: its entry
-- in the inbox names that one in `replaces`.
local inbox, known, answers, shares, fence, again = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local trust, distrusted, compared = KEYS[7], KEYS[8], KEYS[9]
local fingerprint, token = ARGV[1], tonumber(ARGV[2])
local most, most_of_tenant = tonumber(ARGV[3]), tonumber(ARGV[4])
local remembered, patience = tonumber(ARGV[5]), tonumber(ARGV[6])
local FIELDS, FIRST, TRUST_MAX = 7, 6, 200
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
local lessons = (#ARGV - FIRST) / FIELDS
local waiting = redis.call('XLEN', inbox)
if waiting + lessons > most then return { 'FULL', waiting } end
if token > newest then redis.call('SET', fence, ARGV[2]) end

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

-- Whether two answers name the same: true, false, or nil where one names nothing.
local function agree(some, others)
  if #some == 0 or #others == 0 then return nil end
  for _, one in ipairs(some) do
    for _, other in ipairs(others) do
      if one == other then return true end
    end
  end
  return false
end

-- Counts for or against a tenant, once for each pair of examples; the older half of what was counted fades.
local function weigh(tenant, right, pair)
  if patience == 0 or right == nil or redis.call('ZADD', compared, 'NX', now, pair) == 0 then return end
  local sums = cjson.decode(redis.call('HGET', trust, tenant) or '{"right":0,"wrong":0}')
  local name = right and 'right' or 'wrong'
  sums[name] = sums[name] + 1
  if sums.right + sums.wrong > TRUST_MAX then sums.right, sums.wrong = sums.right / 2, sums.wrong / 2 end
  redis.call('HSET', trust, tenant, cjson.encode(sums))
  local bad = sums.wrong >= patience and sums.wrong > sums.right
  redis.call(bad and 'SADD' or 'SREM', distrusted, tenant)
end

local outcomes, taken = {}, 0
for i = 1, lessons do
  local at = FIRST + (i - 1) * FIELDS
  local id, question, answer, tenant = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local claims, checked, json = cjson.decode(ARGV[at + 5]), ARGV[at + 6] == '1', ARGV[at + 7]
  local before = redis.call('HGET', answers, question)
  before = before and cjson.decode(before)
  local replaces = before and checked and not before.checked and before.tenant ~= tenant and before.answer ~= answer
  if before and before.checked ~= checked and before.tenant ~= tenant then
    local right = before.answer == answer or agree(claims, before.claims)
    weigh(checked and before.tenant or tenant, right, before.id .. ' ' .. id)
  end
  if (before and before.answer == answer) or redis.call('ZSCORE', known, 'i' .. id) then
    outcomes[i] = 'duplicate'
  elseif before and not replaces then
    outcomes[i] = 'contradiction'
  elseif not checked and redis.call('SISMEMBER', distrusted, tenant) == 1 then
    outcomes[i] = 'distrusted'
  elseif tonumber(redis.call('HGET', shares, tenant) or '0') >= most_of_tenant then
    if taken == 0 and tonumber(redis.call('HGET', shares, tenant)) >= waiting then return { 'FULL', waiting } end
    outcomes[i] = 'tenant_share'
  else
    taken = taken + 1
    redis.call('XADD', inbox, '*', 'lesson', json, 'replaces', replaces and before.id or '')
    redis.call('HINCRBY', shares, tenant, 1)
    redis.call('ZADD', known, now, 'i' .. id, now, 'q' .. question)
    redis.call('HSET', answers, question,
      cjson.encode({ id = id, answer = answer, claims = claims, tenant = tenant, checked = checked }))
    outcomes[i] = 'taken'
  end
end
redis.call('ZREMRANGEBYRANK', compared, 0, -remembered - 1)
while redis.call('ZCARD', known) > remembered do
  local oldest = redis.call('ZPOPMIN', known, 100)
  for i = 1, #oldest, 2 do
    if string.sub(oldest[i], 1, 1) == 'q' then redis.call('HDEL', answers, string.sub(oldest[i], 2)) end
  end
end
if again ~= '' then redis.call('SET', again, cjson.encode({ fingerprint, cjson.encode(outcomes) }), 'EX', 86400) end
return { 'OK', unpack(outcomes) }
