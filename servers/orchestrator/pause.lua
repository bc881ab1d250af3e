-- ARGV: 1 to pause or 0 to resume, reason, idempotency key or ''. Answers 'OK', 'REPEATED' or 'REUSED'.
if ARGV[3] ~= '' then
  local key, wish = 'orchestrator:repeat:pause:' .. ARGV[3], ARGV[1] .. ' ' .. ARGV[2]
  local before = redis.call('GET', key)
  if before then return (before == wish) and 'REPEATED' or 'REUSED' end
  redis.call('SET', key, wish, 'EX', 86400)
end
if ARGV[1] == '1' then
  redis.call('HSET', 'orchestrator:paused', 'reason', ARGV[2])
else
  redis.call('DEL', 'orchestrator:paused')
end
return 'OK'
