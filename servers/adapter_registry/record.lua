-- Counts outcomes into the evidence of the reign that is on, each part of an outcome once.
-- ARGV: idempotency key or '', fingerprint, hour now, window now, seconds that a window lasts, seconds that evidence is kept,
--   Unix time, then per outcome: role, adapter id, served mark or '', failed ('1', '0'), cost, latency bucket or '', judged mark
--   or '', compared with, score ('1', '0.5', '0'), unit mark or '', rated mark or
--   '', rating ('1', '-1').
-- Marks are short hashes of what makes a part of an outcome the same. Answers {'OK', new, known} or {'REUSED'}.
--
-- adapters:seen:<window>                     marks of this window; those of the one before count too
-- adapters:arm:<role>:<reign>:<adapter>      n, errors, cost, and l<bucket>: answers by latency
-- adapters:pairs:<role>:<reign>:<challenger> wins, losses, ties, and how many pairs the next point waits for
-- adapters:points:<role>:<reign>:<challenger> list of 'time wins losses ties', longer with the logarithm of the pairs only
-- adapters:units:<role>:<split>, adapters:split:<role>:<split>   units seen, and how many each adapter got
-- adapters:ratings:<role>:<reign>:<adapter>  list of ratings, in the order in which they came
-- adapters:hour:<role>:<hour>                requests
local UNITS_MAX, RATINGS_MAX = 100000, 10000
local repeat_key = ARGV[1] ~= '' and 'adapters:repeat:' .. ARGV[1] or nil
if repeat_key then
  local known = redis.call('HMGET', repeat_key, 'fingerprint', 'new', 'known')
  if known[1] then
    if known[1] ~= ARGV[2] then return { 'REUSED' } end
    return { 'OK', known[2], known[3] }
  end
end
local hour, window, window_s, keep_s, now = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local seen, before = 'adapters:seen:' .. ARGV[4], 'adapters:seen:' .. string.format('%.0f', window - 1)
local touched = {}

local function first_time(mark)
  if mark == '' then return false end
  if redis.call('SISMEMBER', before, mark) == 1 then return false end
  return redis.call('SADD', seen, mark) == 1
end

local function add(key, field, amount)
  redis.call('HINCRBY', key, field, amount)
  touched[key] = true
end

local function count_unit(role, split, adapter, unit)
  if unit == '' then return end
  local units = 'adapters:units:' .. role .. ':' .. split
  if redis.call('SCARD', units) >= UNITS_MAX then return end
  touched[units] = true
  if redis.call('SADD', units, unit) == 1 then add('adapters:split:' .. role .. ':' .. split, adapter, 1) end
end

local function count_pair(role, reign, champion, adapter, other, score)
  if adapter == champion then
    adapter, other = other, adapter
    score = score == '1' and '0' or score == '0' and '1' or score
  end
  if other ~= champion or adapter == other then return end -- judged against a champion that is no more
  local key = 'adapters:pairs:' .. role .. ':' .. reign .. ':' .. adapter
  add(key, score == '1' and 'wins' or score == '0' and 'losses' or 'ties', 1)
  local state = redis.call('HMGET', key, 'wins', 'losses', 'ties', 'next')
  local wins, losses, ties = tonumber(state[1] or '0'), tonumber(state[2] or '0'), tonumber(state[3] or '0')
  local pairs_now = wins + losses + ties
  if pairs_now >= tonumber(state[4] or '1') then
    local points = 'adapters:points:' .. role .. ':' .. reign .. ':' .. adapter
    redis.call('RPUSH', points, table.concat({ now, wins, losses, ties }, ' '))
    redis.call('HSET', key, 'next', string.format('%.0f', math.ceil(pairs_now * 1.15)))
    touched[points] = true
  end
end

-- the n-th opinion of a challenger is held against the n-th of the champion: if both are liked alike, either wins as often
local function count_rating(role, reign, champion, adapter, rating)
  local prefix = 'adapters:ratings:' .. role .. ':' .. reign .. ':'
  local own, other = prefix .. adapter, prefix .. champion
  if redis.call('LLEN', own) >= RATINGS_MAX then return end
  redis.call('RPUSH', own, rating)
  touched[own] = true
  if adapter == champion then return end
  local paired = 'adapters:pairs:' .. role .. ':' .. reign .. ':' .. adapter
  local at = tonumber(redis.call('HGET', paired, 'rated') or '0')
  local most = math.min(redis.call('LLEN', own), redis.call('LLEN', other))
  while at < most do
    local mine = tonumber(redis.call('LINDEX', own, at))
    local theirs = tonumber(redis.call('LINDEX', other, at))
    count_pair(role, reign, champion, adapter, champion, mine > theirs and '1' or mine < theirs and '0' or '0.5')
    at = at + 1
    redis.call('HSET', paired, 'rated', at)
  end
end

local new, known = 0, 0
for i = 8, #ARGV, 12 do
  local role, adapter = ARGV[i], ARGV[i + 1]
  local reign = redis.call('HMGET', 'adapters:reign:' .. role, 'champion', 'reign', 'split')
  local champion, number, split = reign[1] or '', reign[2] or '0', reign[3] or '0'
  local fresh = false
  if first_time(ARGV[i + 2]) then
    fresh = true
    local arm = 'adapters:arm:' .. role .. ':' .. number .. ':' .. adapter
    add(arm, 'n', 1)
    if ARGV[i + 3] == '1' then add(arm, 'errors', 1) end
    if ARGV[i + 4] ~= '0' then add(arm, 'cost', ARGV[i + 4]) end
    if ARGV[i + 5] ~= '' then add(arm, 'l' .. ARGV[i + 5], 1) end
    count_unit(role, split, adapter, ARGV[i + 9])
    local hours = 'adapters:hour:' .. role .. ':' .. hour
    redis.call('INCR', hours)
    redis.call('EXPIRE', hours, 100000)
  end
  if first_time(ARGV[i + 6]) then
    fresh = true
    count_pair(role, number, champion, adapter, ARGV[i + 7], ARGV[i + 8])
  end
  if first_time(ARGV[i + 10]) then
    fresh = true
    count_rating(role, number, champion, adapter, ARGV[i + 11])
  end
  if fresh then new = new + 1 else known = known + 1 end
end
redis.call('EXPIRE', seen, 2 * window_s)
for key in pairs(touched) do redis.call('EXPIRE', key, keep_s) end
if repeat_key then
  redis.call('HSET', repeat_key, 'fingerprint', ARGV[2], 'new', new, 'known', known)
  redis.call('EXPIRE', repeat_key, 86400)
end
return { 'OK', tostring(new), tostring(known) }
