-- ARGV: shift, id, attempt, delay in ms
if not has_lease(ARGV[2], ARGV[3]) then return 0 end
wait_again(ARGV[2], now_ms + tonumber(ARGV[4]))
return 1
