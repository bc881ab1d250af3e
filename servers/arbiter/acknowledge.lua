-- Takes handled entries out of a group and answers up to where all are handled.
-- KEYS[1] the stream; ARGV group, then entry ids
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then return '0' end
for i = 2, #ARGV do
  if redis.call('XACK', key, ARGV[1], ARGV[i]) == 1 then redis.call('XDEL', key, ARGV[i]) end
end
local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
if first then return string.format('%.0f', tonumber(string.match(first[1], '^%d+')) - 1) end
local info = redis.call('XINFO', 'STREAM', key)
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^%d+') end
end
