-- ARGV: shift, idempotency key, fingerprint, number of items, number of updates, then
--   per item: tenant, model, purpose, cost, requests, prompt tokens, answer tokens, master cost
--   per update: reservation id, spent, close ('1' or '0')
-- Answers {'OK', closed id...} or {'REUSED'}. Items are what was spent; updates only say how much of a reservation that used up.
local repeat_key = 'governor:repeat:settle:' .. ARGV[2]
local known = redis.call('GET', repeat_key)
if known then
  known = cjson.decode(known)
  if known[1] ~= ARGV[3] then return { 'REUSED' } end
  return known[2]
end
local items, updates, at = tonumber(ARGV[4]), tonumber(ARGV[5]), 6
for _ = 1, items do
  local tenant, model, purpose = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  book(tenant, model, purpose, tonumber(ARGV[at + 3]))
  add_row(tenant, model, purpose, 'requests', tonumber(ARGV[at + 4]))
  add_row(tenant, model, purpose, 'prompt_tokens', tonumber(ARGV[at + 5]))
  add_row(tenant, model, purpose, 'completion_tokens', tonumber(ARGV[at + 6]))
  add_row(tenant, model, purpose, 'master_cost_micros', tonumber(ARGV[at + 7]))
  at = at + 8
end
local answer = { 'OK' }
for _ = 1, updates do
  local id, spent, close = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  at = at + 3
  local key = 'governor:reservation:' .. id
  local r = redis.call('HMGET', key, 'state', 'tenant', 'purpose', 'left', 'ttl', 'day', 'month', 'charged')
  if r[1] == 'open' then
    local used = math.min(spent, tonumber(r[4]))
    add('held', r[6], r[2], r[3], -used)
    add('held', r[7], r[2], r[3], -used)
    if used > 0 then redis.call('HINCRBY', key, 'left', -used) end -- Lua writes -0, which is no integer to Redis
    if close then
      finish(id, false)
    else
      redis.call('ZADD', 'governor:expiry', string.format('%.0f', math.min(now_ms + tonumber(r[5]), day_end_ms)), id)
    end
  else
    answer[#answer + 1] = id
    local refund = math.min(spent, tonumber(r[8] or '0'))
    if refund > 0 then -- it was charged when it expired, and the items have booked it again
      book(r[2], '(expired)', r[3], -refund)
      add_row(r[2], '(expired)', r[3], 'master_cost_micros', -refund)
      redis.call('HINCRBY', key, 'charged', -refund)
    end
  end
end
end_abandoned()
redis.call('SET', repeat_key, cjson.encode({ ARGV[3], answer }), 'EX', 86400)
return answer
