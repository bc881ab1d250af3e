-- ARGV: token, map as JSON, what Routers and registry told as JSON.
local refused = fenced(ARGV[1])
if refused then return refused end
redis.call('SET', 'orchestrator:map', ARGV[2])
redis.call('SET', 'orchestrator:learnt', ARGV[3])
return { 'OK' }
