-- ARGV: name, time to live in milliseconds. Answers {1 if it leads now, token, name of the leader}.
local held = redis.call('GET', 'orchestrator:lease')
if held then
  local token, leader = string.match(held, '^(%d+) (.*)$')
  if leader ~= ARGV[1] then return { 0, tonumber(token), leader } end
  redis.call('PEXPIRE', 'orchestrator:lease', ARGV[2])
  return { 1, tonumber(token), leader }
end
local token = redis.call('INCR', 'orchestrator:fence')
redis.call('SET', 'orchestrator:lease', token .. ' ' .. ARGV[1], 'PX', ARGV[2])
return { 1, token, ARGV[1] }
