-- ARGV: shift, then pairs of tenant and purpose. Answers the date, then for each budget of these {who, period, purpose, limit,
-- spent, held, end of the period in Unix milliseconds}.
end_abandoned()
local answer = { date }
for i = 2, #ARGV, 2 do
  local seen = {}
  for _, b in ipairs(applicable(ARGV[i], ARGV[i + 1])) do
    local ends = (b.period == 'DAY') and day_end_ms or month_end_ms()
    if b.who == ARGV[i] and not seen[b.period] then
      seen[b.period] = true
      answer[#answer + 1] = { b.who, b.period, ARGV[i + 1], string.format('%.0f', b.limit), string.format('%.0f', b.spent),
        string.format('%.0f', b.held), string.format('%.0f', ends) }
    end
  end
end
return answer
