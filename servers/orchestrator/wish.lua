-- ARGV: id, wish as JSON, steps, idempotency key or '', most that may wait. Answers {'OK', id}, {'REUSED'} or {'FULL'}.
if ARGV[4] ~= '' then
  local key = 'orchestrator:repeat:cycle:' .. ARGV[4]
  local before = redis.call('HMGET', key, 'steps', 'id')
  if before[1] then return (before[1] == ARGV[3]) and { 'OK', before[2] } or { 'REUSED' } end
  redis.call('HSET', key, 'steps', ARGV[3], 'id', ARGV[1])
  redis.call('EXPIRE', key, 86400)
end
if redis.call('LLEN', 'orchestrator:wishes') >= tonumber(ARGV[5]) then return { 'FULL' } end
redis.call('RPUSH', 'orchestrator:wishes', ARGV[2])
return { 'OK', ARGV[1] }
