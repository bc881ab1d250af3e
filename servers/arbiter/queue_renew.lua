-- ARGV: shift, id, attempt, lease in ms
if not has_lease(ARGV[2], ARGV[3]) then return 0 end
redis.call('ZADD', P .. 'leases', num(now_ms + tonumber(ARGV[4])), ARGV[2])
return 1
