# frozen_string_literal: true

module Walrust
  # Loads walrust when Rails starts, before ActiveRecord opens a database. Which database goes where is said in walrust.toml, or in
  # WALRUST_REPLICA.
  class Railtie < Rails::Railtie
    initializer "walrust.load", before: "active_record.initialize_database" do
      Walrust.load
    end
  end
end
