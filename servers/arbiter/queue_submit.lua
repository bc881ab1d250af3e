-- ARGV: shift, bound, share of a tenant, seconds that a hash is remembered, hash, tenant, value, body
-- Answers {'DUPLICATE'}, {'DROPPED'} or {'ACCEPTED', how many others were dropped for it}.
local bound, share, hash, tenant, value = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5], ARGV[6], ARGV[7]
local seen = P .. 'seen:' .. hash
if redis.call('EXISTS', seen) == 1 then return { 'DUPLICATE' } end

-- Makes room in a set that is full: the least valuable goes, the oldest of equals first; false if it is the new one.
local dropped = 0
local function room_in(set, limit)
  while redis.call('ZCARD', set) >= limit do
    local least = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
    if #least == 0 or tonumber(least[2]) > tonumber(value) then return false end
    redis.call('ZREM', set, least[1])
    forget(least[1])
    dropped = dropped + 1
  end
  return true
end

-- What workers have in hand keeps its place: it may come back.
local in_hand = redis.call('ZCARD', P .. 'leases')
local taken = room_in(P .. 'of:' .. tenant, share) and room_in(P .. 'all', bound - in_hand)
redis.call('INCRBY', P .. 'dropped', dropped + (taken and 0 or 1))
if not taken then return { 'DROPPED', num(dropped) } end
redis.call('SET', seen, '1', 'EX', ARGV[4])
local id = string.format('%014.0f', now_ms) .. '-' .. hash
redis.call('HSET', P .. 'body', id, ARGV[8])
redis.call('HSET', P .. 'values', id, value)
redis.call('HSET', P .. 'tenants', id, tenant)
wait_again(id, 0)
return { 'ACCEPTED', num(dropped) }
