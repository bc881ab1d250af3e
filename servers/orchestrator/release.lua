-- ARGV: name.
local held = redis.call('GET', 'orchestrator:lease')
if held and string.match(held, '^%d+ (.*)$') == ARGV[1] then redis.call('DEL', 'orchestrator:lease') end
return 1
