-- What every script of the Governor begins with: time by Redis's own clock, periods, and the end of reservations.
-- ARGV[1] shifts the clock in milliseconds: 0 in production, the tests' way to let time pass.
--
-- governor:budgets               tenant|period|purpose -> limit
-- governor:spent:<period key>    tenant|purpose        -> micro-USD booked, for each tenant and for * (all together)
-- governor:held:<period key>     tenant|purpose        -> micro-USD reserved and not yet booked
-- governor:rows:<date>           tenant|model|purpose|what -> sums of spend
-- governor:reservation:<id>      a hash; it stays a day after its end, so that a late settlement is not booked twice
-- governor:expiry                reservation ids by the time of their end, in milliseconds
local KEEP_ROWS_S, KEEP_SUMS_S, KEEP_ENDED_S = 400 * 86400, 40 * 86400, 86400
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[1])

-- Days since 1970-01-01 to year, month, day (H. Hinnant, chrono-compatible low-level date algorithms).
local function civil(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return year, month, day
end

local today = math.floor(now_ms / 86400000)
local year, month, day = civil(today)
local date = string.format('%04d-%02d-%02d', year, month, day)
local period_key = { DAY = date, MONTH = string.sub(date, 1, 7) }
local day_end_ms = (today + 1) * 86400000

local function month_end_ms()
  local days = today - day + 1
  local _, m = civil(days)
  local _, current = m, m
  while current == m do
    days = days + 1
    _, current = civil(days)
  end
  return days * 86400000
end

local function add(kind, period, tenant, purpose, amount)
  if amount == 0 then return end
  local key = 'governor:' .. kind .. ':' .. period
  redis.call('HINCRBY', key, tenant .. '|' .. purpose, amount)
  redis.call('HINCRBY', key, '*|' .. purpose, amount)
  redis.call('EXPIRE', key, KEEP_SUMS_S)
end

local function add_row(tenant, model, purpose, what, amount)
  if amount == 0 then return end
  local key = 'governor:rows:' .. date
  redis.call('HINCRBY', key, tenant .. '|' .. model .. '|' .. purpose .. '|' .. what, amount)
  redis.call('EXPIRE', key, KEEP_ROWS_S)
end

local function book(tenant, model, purpose, cost)
  add_row(tenant, model, purpose, 'cost_micros', cost)
  add('spent', period_key.DAY, tenant, purpose, cost)
  add('spent', period_key.MONTH, tenant, purpose, cost)
end

-- Ends a reservation. `charge`: what is left of it counts as spent.
local function finish(id, charge)
  local key = 'governor:reservation:' .. id
  local r = redis.call('HMGET', key, 'tenant', 'purpose', 'left', 'day', 'month')
  local left = tonumber(r[3])
  redis.call('ZREM', 'governor:expiry', id)
  add('held', r[4], r[1], r[2], -left)
  add('held', r[5], r[1], r[2], -left)
  local charged = 0
  if charge and left > 0 then
    charged = left
    book(r[1], '(expired)', r[2], left)
    add_row(r[1], '(expired)', r[2], 'master_cost_micros', left)
  end
  redis.call('HSET', key, 'state', 'ended', 'left', 0, 'charged', charged)
  redis.call('EXPIRE', key, KEEP_ENDED_S)
end

local function end_abandoned()
  local due = redis.call('ZRANGEBYSCORE', 'governor:expiry', '-inf', now_ms, 'LIMIT', 0, 200)
  for _, id in ipairs(due) do
    finish(id, redis.call('HGET', 'governor:reservation:' .. id, 'on_expiry') == 'CHARGE')
  end
end

-- The budgets that apply to a tenant and purpose, each with what is left of it.
local function applicable(tenant, purpose)
  local found = {}
  for _, who in ipairs({ tenant, '*' }) do
    for _, period in ipairs({ 'DAY', 'MONTH' }) do
      local limit = redis.call('HGET', 'governor:budgets', who .. '|' .. period .. '|' .. purpose)
      if limit then
        local field = who .. '|' .. purpose
        local spent = tonumber(redis.call('HGET', 'governor:spent:' .. period_key[period], field) or '0')
        local held = tonumber(redis.call('HGET', 'governor:held:' .. period_key[period], field) or '0')
        found[#found + 1] = { who = who, period = period, limit = tonumber(limit), spent = spent, held = held,
          left = tonumber(limit) - spent - held }
      end
    end
  end
  return found
end
