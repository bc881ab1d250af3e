-- ARGV: shift, id, attempt
if not has_lease(ARGV[2], ARGV[3]) then return 0 end
forget(ARGV[2])
return 1
