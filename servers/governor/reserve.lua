-- ARGV: shift, id, tenant, purpose, min, wanted, ttl in ms, on_expiry, holder, idempotency key or ''
-- Answers {'GRANTED', id, granted, ttl in ms, left}, {'UNLIMITED'} or {'EXHAUSTED', who, period, limit, left, ms until the period ends}.
local id, tenant, purpose = ARGV[2], ARGV[3], ARGV[4]
local min, wanted, ttl = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local repeat_key = ARGV[10] ~= '' and 'governor:repeat:reserve:' .. ARGV[10] or nil
local print = table.concat({ tenant, purpose, ARGV[5], ARGV[6], ARGV[8] }, '|')
if repeat_key then
  local known = redis.call('GET', repeat_key)
  if known then
    known = cjson.decode(known)
    if known[1] ~= print then return { 'REUSED' } end
    return known[2]
  end
end
end_abandoned()
local budgets = applicable(tenant, purpose)
if #budgets == 0 then return { 'UNLIMITED' } end
local left, short, wait_ms = nil, nil, 0
for _, b in ipairs(budgets) do
  if b.left < min then
    local ends = (b.period == 'DAY') and day_end_ms or month_end_ms()
    if ends - now_ms > wait_ms then short, wait_ms = b, ends - now_ms end
  end
  if left == nil or b.left < left then left = b.left end
end
local function num(n) return string.format('%.0f', n) end
if short then
  return { 'EXHAUSTED', short.who, short.period, num(short.limit), num(math.max(0, short.left)), num(wait_ms) }
end
-- An eighth of what is left at most, so that replicas leave each other money to the end.
local granted = math.max(min, math.min(wanted, math.floor(left / 8)))
ttl = math.min(ttl, day_end_ms - now_ms)
local key = 'governor:reservation:' .. id
redis.call('HSET', key, 'tenant', tenant, 'purpose', purpose, 'left', num(granted), 'ttl', num(ttl), 'on_expiry', ARGV[8],
  'holder', ARGV[9], 'day', period_key.DAY, 'month', period_key.MONTH, 'state', 'open')
redis.call('ZADD', 'governor:expiry', num(now_ms + ttl), id)
add('held', period_key.DAY, tenant, purpose, granted)
add('held', period_key.MONTH, tenant, purpose, granted)
local answer = { 'GRANTED', id, num(granted), num(ttl), num(left - granted) }
if repeat_key then redis.call('SET', repeat_key, cjson.encode({ print, answer }), 'EX', 86400) end
return answer
