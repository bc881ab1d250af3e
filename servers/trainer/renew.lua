-- ARGV: id, owner, lease in ms (0: give it up). Answers 1, or 0 where the job has another owner or none.
local json = redis.call('HGET', 'trainer:job:' .. ARGV[1], 'json')
if not json or cjson.decode(json).owner ~= ARGV[2] then return 0 end
local clock = redis.call('TIME')
redis.call('ZADD', 'trainer:leases', clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[3]), ARGV[1])
return 1
