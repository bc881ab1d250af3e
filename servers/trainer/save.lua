-- Puts a job in the place of its revision before, or into the queue where there was none, in one step.
--
-- trainer:job:<id>        a hash: json, revision, state
-- trainer:jobs            ids by their place in the order of arrival
-- trainer:queue           the same of those that wait
-- trainer:active          ids of those that run or are being evaluated
-- trainer:leases          ids by the end of their owner's lease, in milliseconds of Redis's clock
-- trainer:schedule        grows with everything that the choice of the next job depends on
-- trainer:counts          state -> how many jobs
-- trainer:fence           the highest fencing token seen
-- trainer:repeat:<key>    a day long, what a call with this idempotency key was: {fingerprint, id}
--
-- ARGV: id, expected revision ('' for a new job), json, state, expected schedule ('' for any), whether the schedule
--   changes ('1' or '0'), lease in ms (-1: as it is, 0: none), idempotency key or '', fingerprint, fencing token,
--   longest queue
-- Answers {'OK'}, {'CONFLICT'}, {'REUSED'}, {'REPEATED', id}, {'STALE', highest token} or {'FULL', length}.
local id, expected, json, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = 'trainer:job:' .. id
local repeat_key = ARGV[8] ~= '' and 'trainer:repeat:' .. ARGV[8] or nil
if repeat_key then
  local known = redis.call('GET', repeat_key)
  if known then
    known = cjson.decode(known)
    if known[1] ~= ARGV[9] then return { 'REUSED' } end
    return { 'REPEATED', known[2] }
  end
end
local before = redis.call('HMGET', key, 'revision', 'state')
if (before[1] or '') ~= expected then return { 'CONFLICT' } end
if ARGV[5] ~= '' and (redis.call('GET', 'trainer:schedule') or '0') ~= ARGV[5] then return { 'CONFLICT' } end
if expected == '' then
  local token, highest = tonumber(ARGV[10]), tonumber(redis.call('GET', 'trainer:fence') or '0')
  if token > 0 and token < highest then return { 'STALE', string.format('%.0f', highest) } end
  local waiting = redis.call('ZCARD', 'trainer:queue')
  if waiting >= tonumber(ARGV[11]) then return { 'FULL', waiting } end
  if token > highest then redis.call('SET', 'trainer:fence', ARGV[10]) end
  redis.call('ZADD', 'trainer:jobs', redis.call('INCR', 'trainer:sequence'), id)
end
redis.call('HSET', key, 'json', json, 'revision', tonumber(expected == '' and '0' or expected) + 1, 'state', state)
if before[2] ~= state then
  if before[2] then redis.call('HINCRBY', 'trainer:counts', before[2], -1) end
  redis.call('HINCRBY', 'trainer:counts', state, 1)
  if state == 'QUEUED' then
    redis.call('ZADD', 'trainer:queue', redis.call('ZSCORE', 'trainer:jobs', id), id)
  else
    redis.call('ZREM', 'trainer:queue', id)
  end
  if state == 'RUNNING' or state == 'EVALUATING' then
    redis.call('SADD', 'trainer:active', id)
  else
    redis.call('SREM', 'trainer:active', id)
  end
end
if ARGV[6] == '1' then redis.call('INCR', 'trainer:schedule') end
local lease_ms = tonumber(ARGV[7])
if lease_ms > 0 then
  local clock = redis.call('TIME')
  redis.call('ZADD', 'trainer:leases', clock[1] * 1000 + math.floor(clock[2] / 1000) + lease_ms, id)
elseif lease_ms == 0 then
  redis.call('ZREM', 'trainer:leases', id)
end
if repeat_key then redis.call('SET', repeat_key, cjson.encode({ ARGV[9], id }), 'EX', 86400) end
return { 'OK' }
