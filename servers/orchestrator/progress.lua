-- ARGV: token, step, next cycle in Unix seconds.
local refused = fenced(ARGV[1])
if refused then return refused end
redis.call('HSET', 'orchestrator:progress', 'token', ARGV[1], 'step', ARGV[2], 'next', ARGV[3])
return { 'OK' }
