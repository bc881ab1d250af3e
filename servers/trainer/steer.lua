-- Pauses a learner, lets it go on, or asks it to drain, once per idempotency key.
-- KEYS: the learner's hash, fence, repeat ('' is none)
-- ARGV: fingerprint, fencing token, what (pause, resume or drain), reason
-- Answers {'OK'}, {'REUSED'} or {'STALE', newest token}.
local head, fence, again, token = KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[2])
if again ~= '' then
  local before = redis.call('GET', again)
  if before then return { cjson.decode(before)[1] == ARGV[1] and 'OK' or 'REUSED' } end
end
local newest = tonumber(redis.call('GET', fence) or '0')
if token > 0 and token < newest then return { 'STALE', string.format('%.0f', newest) } end
if token > newest then redis.call('SET', fence, ARGV[2]) end
if ARGV[3] == 'pause' then
  redis.call('HSET', head, 'paused', '1', 'reason', ARGV[4])
elseif ARGV[3] == 'resume' then
  redis.call('HSET', head, 'paused', '', 'reason', '')
else
  redis.call('HINCRBY', head, 'drain', 1)
end
if again ~= '' then redis.call('SET', again, cjson.encode({ ARGV[1], '' }), 'EX', 86400) end
return { 'OK' }
