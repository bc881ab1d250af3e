-- ARGV: shift, expected revision, new config as JSON, new revision, change as JSON or '', idempotency key or '', fingerprint,
--   then pairs of budget field and limit. Answers {'OK'}, {'CONFLICT'}, {'REUSED'} or {'REPEATED', config}.
local repeat_key = ARGV[6] ~= '' and 'governor:repeat:config:' .. ARGV[6] or nil
if repeat_key then
  local known = redis.call('GET', repeat_key)
  if known then
    known = cjson.decode(known)
    if known[1] ~= ARGV[7] then return { 'REUSED' } end
    return { 'REPEATED', known[2] }
  end
end
if (redis.call('GET', 'governor:revision') or '') ~= ARGV[2] then return { 'CONFLICT' } end
if ARGV[4] ~= ARGV[2] then
  redis.call('SET', 'governor:config', ARGV[3])
  redis.call('SET', 'governor:revision', ARGV[4])
  redis.call('DEL', 'governor:budgets')
  for i = 8, #ARGV, 2 do redis.call('HSET', 'governor:budgets', ARGV[i], ARGV[i + 1]) end
  if ARGV[5] ~= '' then redis.call('RPUSH', 'governor:changes', ARGV[5]) end
end
if repeat_key then redis.call('SET', repeat_key, cjson.encode({ ARGV[7], ARGV[3] }), 'EX', 86400) end
return { 'OK' }
