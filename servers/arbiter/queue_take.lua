-- ARGV: shift, lease in ms. Answers {id, attempt, body}, or {} if nothing may be taken now.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', num(now_ms), 'LIMIT', 0, 100)) do
  wait_again(id, 0)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'later', '-inf', num(now_ms), 'LIMIT', 0, 100)) do
  redis.call('ZREM', P .. 'later', id)
  redis.call('ZADD', P .. 'ready', redis.call('HGET', P .. 'values', id), id)
end
local best = redis.call('ZREVRANGE', P .. 'ready', 0, 0)[1]
if not best then return {} end
no_longer_waits(best)
redis.call('ZADD', P .. 'leases', num(now_ms + tonumber(ARGV[2])), best)
return { best, num(redis.call('HINCRBY', P .. 'attempts', best, 1)), redis.call('HGET', P .. 'body', best) }
