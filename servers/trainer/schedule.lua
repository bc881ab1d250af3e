-- Answers {schedule revision, then per job that runs or waits: json, milliseconds of its lease that are left}, oldest first.
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ids = redis.call('ZRANGE', 'trainer:queue', 0, -1)
local active = redis.call('SMEMBERS', 'trainer:active')
local place = {}
for _, id in ipairs(active) do ids[#ids + 1] = id end
for _, id in ipairs(ids) do place[id] = tonumber(redis.call('ZSCORE', 'trainer:jobs', id)) end
table.sort(ids, function(a, b) return place[a] < place[b] end)
local answer = { redis.call('GET', 'trainer:schedule') or '0' }
for _, id in ipairs(ids) do
  answer[#answer + 1] = redis.call('HGET', 'trainer:job:' .. id, 'json')
  answer[#answer + 1] = string.format('%.0f', tonumber(redis.call('ZSCORE', 'trainer:leases', id) or now_ms) - now_ms)
end
return answer
