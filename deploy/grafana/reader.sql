-- A role that reads the reporting views and nothing else: no tables, so no numbers and no texts of messages.
-- Run it in the database of each schema as a superuser, or as who owns the schemas and may create roles; again after an
-- upgrade that brings views, and after a restore. Then give the role a password:  \password smsbill_reader
do $$
declare
  view record;
begin
  if not exists (select from pg_roles where rolname = 'smsbill_reader') then
    create role smsbill_reader login;
  end if;
  alter role smsbill_reader set default_transaction_read_only = on;
  alter role smsbill_reader set statement_timeout = '10s';
  for view in
    select schemaname, viewname from pg_views
    where schemaname in ('costcenter', 'smsgateway') and viewname like 'report\_%'
  loop
    execute format('grant usage on schema %I to smsbill_reader', view.schemaname);
    execute format('grant select on %I.%I to smsbill_reader', view.schemaname, view.viewname);
  end loop;
end
$$;
