-- Gives a consumer of a group its next work. One group is one stream of sequences (entry <sequence>-0), fed only as far
-- as its consumers take, so that an absent consumer costs nothing and an acknowledged entry is deleted at once: what the
-- stream holds is what is not acknowledged.
-- KEYS[1] the stream, KEYS[2] its consumers: name -> "<token> <end of its lease in ms>", KEYS[3] all groups
-- ARGV group, consumer, token, last sequence of the ledger, most under way, most now, idle ms, lease ms, resume, joining
local key, leases = KEYS[1], KEYS[2]
local group, me, token, last = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local most, now_most, idle_ms, lease_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local resume, joining = ARGV[9], ARGV[10] == '1'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function fields(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function lease_of(name)
  local owner, ends = string.match(redis.call('HGET', leases, name) or '', '^(%S+) (%d+)$')
  return owner, tonumber(ends or 0)
end

local owner, ends = lease_of(me)
if owner and owner ~= token and not joining then return { 'REPLACED' } end
if owner ~= token or ends - now < lease_ms / 2 then
  redis.call('HSET', leases, me, string.format('%s %.0f', token, now + lease_ms))
end
local created = 0
if redis.call('EXISTS', key) == 0 then
  redis.call('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
  redis.call('SADD', KEYS[3], group)
  created = 1
end

local mine, pending, dead = 0, 0, {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
  local c = fields(flat)
  pending = pending + c.pending
  if c.name == me then
    mine = c.pending
  else
    local _, until_ms = lease_of(c.name)
    if until_ms <= now then
      if c.pending > 0 then
        dead[#dead + 1] = c.name
      else
        redis.call('XGROUP', 'DELCONSUMER', key, group, c.name)
        redis.call('HDEL', leases, c.name)
      end
    end
  end
end

local taken = {}
local function answer(next_resume)
  local info = fields(redis.call('XINFO', 'STREAM', key))
  local sequences = {}
  for i, id in ipairs(taken) do sequences[i] = tonumber(string.match(id, '^%d+')) end
  table.sort(sequences)
  local fed = string.match(info['last-generated-id'], '^%d+')
  local reply = { 'OK', created, next_resume, fed, info['length'] }
  for _, s in ipairs(sequences) do reply[#reply + 1] = string.format('%.0f', s) end
  return reply
end

-- What it held before it came back, in order. Only what was sent again counts as under way until that is through.
if resume ~= '' then
  local sent = resume == '0' and 0 or #redis.call('XPENDING', key, group, '-', resume, most, me)
  local room = math.min(now_most, most - sent)
  if room <= 0 then return answer(resume) end
  local held = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', room, 'STREAMS', key, resume)[1][2]
  for _, entry in ipairs(held) do taken[#taken + 1] = entry[1] end
  if #taken > 0 then return answer(taken[#taken]) end
end

local room = math.min(now_most, most - mine)
local function claim(found, idle)
  local ids = {}
  for _, entry in ipairs(found) do
    if entry[2] ~= me and #ids < room then ids[#ids + 1] = entry[1] end
  end
  if #ids == 0 then return end
  room = room - #ids
  for _, id in ipairs(redis.call('XCLAIM', key, group, me, idle, unpack(ids))) do taken[#taken + 1] = id[1] end
end

for _, name in ipairs(dead) do
  if room > 0 then claim(redis.call('XPENDING', key, group, '-', '+', room, name), 0) end
end
if room > 0 and pending > mine then
  claim(redis.call('XPENDING', key, group, 'IDLE', idle_ms, '-', '+', room + mine), idle_ms)
end
if room > 0 then
  local info = fields(redis.call('XINFO', 'STREAM', key))
  local fed = tonumber(string.match(info['last-generated-id'], '^%d+'))
  local missing = room - (info['length'] - pending)
  for sequence = fed + 1, math.min(last, fed + missing) do
    redis.call('XADD', key, string.format('%.0f-0', sequence), 's', '')
  end
  local new = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', room, 'STREAMS', key, '>')
  if new then
    for _, entry in ipairs(new[1][2]) do taken[#taken + 1] = entry[1] end
  end
end
return answer('')
