-- ARGV: token, cycle as JSON, how many to keep, wish as JSON or '', its id.
local refused = fenced(ARGV[1])
if refused then return refused end
redis.call('XADD', 'orchestrator:cycles', 'MAXLEN', ARGV[3], '*', 'c', ARGV[2])
if ARGV[4] ~= '' then
  redis.call('LREM', 'orchestrator:wishes', 0, ARGV[4])
  redis.call('SET', 'orchestrator:ran:' .. ARGV[5], ARGV[2], 'EX', 86400)
end
return { 'OK' }
